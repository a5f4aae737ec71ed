"""Figures, one per file: each module registers a function that takes data and returns a matplotlib figure."""
