"""Gates of real and made-up models, and text to try them on."""
