"""Offloading of experts over a slow link: cache, store, prefetching."""
