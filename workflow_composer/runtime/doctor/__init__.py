"""What is wrong with a profile here and now: its servers, models, keys, prices, and this machine, each with a remedy."""
