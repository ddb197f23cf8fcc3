"""Experts on the far side of a slow link: cache, store, prefetching."""
