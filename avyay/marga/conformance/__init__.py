"""Judging a gateway from outside: scripted providers, strict readers, and a case per trap."""
