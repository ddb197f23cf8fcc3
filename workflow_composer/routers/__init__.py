"""One way of routing per file; each turns a request into a `Plan`."""
