"""The bundled sentence embedder."""
