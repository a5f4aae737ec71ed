"""`plot`: data gathered for the figures of `analysis/plots/`."""
