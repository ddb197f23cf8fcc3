"""Models in this process, run by mistral.rs."""
