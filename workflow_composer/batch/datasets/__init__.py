"""Data sets: found, and read row by row in constant memory."""
