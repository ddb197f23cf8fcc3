"""Plan execution: fallback, escalation, retries, circuit breakers."""
