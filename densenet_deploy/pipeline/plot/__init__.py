"""`plot`: data gathered for the pictures of `analysis/plots/`."""
