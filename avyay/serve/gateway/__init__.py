"""The gateway: one thin, safe door in front of the components. Authenticates, limits, counts, passes on."""
