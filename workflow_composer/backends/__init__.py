"""Backends for engines and APIs."""
