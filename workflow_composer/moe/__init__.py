"""Verifiable adaptive routing: guess where it is safe, remember what was decided, ask for a bounded share of the rest."""
