"""Token routing by table, cache and gate, and recordings of routes."""
