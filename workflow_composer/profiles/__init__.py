"""How a profile is read: YAML with positions, its short forms, its declarations, its checks, its errors."""
