"""What lives while a strategy is active: its snapshot, streams on their way, the decision log, resources."""
