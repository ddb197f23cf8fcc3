"""Clients that people use, unmodified, through the service in front of a stand-in for vLLM."""
