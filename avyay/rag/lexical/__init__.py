"""Keyword search: how text becomes terms, and how terms become scores."""
