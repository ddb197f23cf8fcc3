"""OpenAI-compatible servers: requests and responses, errors, streams."""
