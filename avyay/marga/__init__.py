"""MĀRGA (मार्ग, path): the LLM router and gateway."""
