"""Known vulnerabilities of dependencies: lock files against a local copy of the OSV database."""
