"""Reading of profiles: YAML with line numbers, short forms, declarations, checks and errors."""
