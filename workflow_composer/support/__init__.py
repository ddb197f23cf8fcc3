"""What Python lacks: quick frozen dataclasses, names imported when used, event loops for callers that do not await."""
