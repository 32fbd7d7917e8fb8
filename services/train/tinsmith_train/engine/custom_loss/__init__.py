"""Losses that clients upload as graphs: read without torch (`graph`), run from an allow-list (`execution`)."""
