"""Batches: data sets through plans, row by row, resumable; and what came of them."""
