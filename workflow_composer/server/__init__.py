"""The HTTP service: OpenAI's API over an orchestrator."""
