"""Metrics: one line per request, live counters, summaries."""
