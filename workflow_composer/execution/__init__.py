"""The one executor of plans: escalation over tiers, fallback within them, and every call metered."""
