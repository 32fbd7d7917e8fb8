"""Architectures that SGLang looks up first.

SGLang otherwise imports all of its two hundred model modules to find one, which takes seconds. For architectures
that are not here it still does.
"""
