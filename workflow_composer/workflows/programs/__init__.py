"""People's programs and functions, within limits of time, memory, processes and network."""
