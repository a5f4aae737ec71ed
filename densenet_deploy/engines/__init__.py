"""Engines: a graph compiled for a device, and what was compiled read back."""
