"""The commands of ``workflow``."""
