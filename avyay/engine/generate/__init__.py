"""Finds work in a codebase: one module for each kind of evidence."""
