"""Inference for clients that speak OpenAI's or Anthropic's protocol instead of Tinker's."""
