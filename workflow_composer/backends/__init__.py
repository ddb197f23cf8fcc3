"""Engines and APIs: one per file, each a `Backend`."""
