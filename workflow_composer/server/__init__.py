"""The HTTP service: OpenAI-compatible API in front of an orchestrator."""
