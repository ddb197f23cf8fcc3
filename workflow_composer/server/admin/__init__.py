"""Admin API for strategy switches, health endpoints, and the dashboard."""
