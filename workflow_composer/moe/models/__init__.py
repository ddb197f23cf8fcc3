"""Gates of real and synthetic models, and synthetic text for them."""
