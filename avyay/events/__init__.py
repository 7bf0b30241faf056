"""What happened, kept and passed on: an outbox in every component's own data, merged when it is read."""
