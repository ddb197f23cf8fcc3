"""Servers that speak OpenAI's API: requests and answers, errors, streams."""
