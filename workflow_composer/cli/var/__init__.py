"""The commands of ``var``."""
