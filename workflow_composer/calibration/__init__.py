"""Uncertainty signals, thresholds with a guarantee, certificates, and watching them in use."""
