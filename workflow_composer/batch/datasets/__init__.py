"""Data sets: finding their files, and reading them row by row in constant memory."""
