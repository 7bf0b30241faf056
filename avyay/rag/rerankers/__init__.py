"""Second opinions on the first results. None is on by default: none has shown a gain (docs/decisions)."""
