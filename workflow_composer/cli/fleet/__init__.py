"""The commands of ``fleet``."""
