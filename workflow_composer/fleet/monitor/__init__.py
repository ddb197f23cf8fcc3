"""Watching servers: checks, incidents, alerts, history."""
