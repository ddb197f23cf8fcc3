"""The state of an active strategy: its snapshot, running streams, the decision log, and resource detection."""
