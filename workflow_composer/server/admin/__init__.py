"""Switching over the network, health, and the dashboard."""
