"""Where attempts run: this machine, and others."""
