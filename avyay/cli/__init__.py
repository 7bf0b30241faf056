"""The `avyay` command."""
