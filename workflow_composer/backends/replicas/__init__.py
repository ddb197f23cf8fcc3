"""A role on several vLLM servers: discovery, load, choice, and observation of each."""
