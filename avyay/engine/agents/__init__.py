"""Coding agents: how each is started, what its words mean, and what came of an attempt."""
