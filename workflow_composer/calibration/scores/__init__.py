"""Signals of one answer, and scores learned from them."""
