"""Daemons: what they all share, and one module for each that joins it with a component."""
