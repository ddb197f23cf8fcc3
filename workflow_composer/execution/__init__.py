"""Execution of plans: escalation over tiers, fallback within a tier, voting, and metering of every call."""
