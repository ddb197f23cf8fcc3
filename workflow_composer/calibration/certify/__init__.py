"""Certificates: thresholds with finite-sample guarantees."""
