"""Votes of one tier: the ballot, its confidence, when it may stop, and how samples are drawn."""
