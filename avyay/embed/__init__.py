"""Text to vectors: the bundled MiniLM, embedders that are services, and a registry that opens them by name."""
