"""Git-native runbook retrieval with cited answers."""
