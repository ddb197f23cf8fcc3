"""API keys, the ledger of their use, and admission."""
