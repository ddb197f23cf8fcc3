"""A table through a prompt: templates over its columns, and the table with the answers."""
