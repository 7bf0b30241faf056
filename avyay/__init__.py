"""Avyay: route LLM calls, ask your runbooks, scan AI-written code, and run the loop that ships it."""

__version__ = "0.1.0"
