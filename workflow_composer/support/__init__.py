"""Helpers for Python itself: fast frozen dataclasses, lazy imports, event loops for synchronous callers."""
