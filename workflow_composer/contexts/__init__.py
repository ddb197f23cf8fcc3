"""Context templates: texts prepended to requests, byte-identical so that servers with prefix caching compute them once."""
