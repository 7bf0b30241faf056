"""What the engine knows of a codebase: files, symbols, imports, owners, tests, past tasks, documents."""
