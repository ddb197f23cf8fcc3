"""Context templates: texts that stand first in requests, byte for byte the same, so that servers compute them once."""
