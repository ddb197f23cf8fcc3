"""Models in this process, by mistral.rs."""
