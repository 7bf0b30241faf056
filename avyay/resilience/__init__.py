"""Circuit breaker, failover ramp and backoff: pure state machines that know no network and no clock of their own."""
