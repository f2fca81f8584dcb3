"""Streams: one file per stream, found by file name."""
