"""Figures, one a file: each module registers one function that takes data and returns a matplotlib figure."""
