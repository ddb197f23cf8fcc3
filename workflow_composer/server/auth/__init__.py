"""API keys and the ledger of their usage."""
