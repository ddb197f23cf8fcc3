"""Several worker processes behind one address, and their supervisor."""
