"""Sampling engines: the interface in `base`, SGLang behind it."""
