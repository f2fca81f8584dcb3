"""Probes: one measurement per file. A probe reads a model, returns numbers, writes nothing."""
