"""Strategies: one file per method, found by file name."""
