"""What is kept of a run: what identifies it, where its rows stand, its shards, and its answers read again."""
