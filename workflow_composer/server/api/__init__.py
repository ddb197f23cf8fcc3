"""The API formats: one module per format, and their shared parts."""
