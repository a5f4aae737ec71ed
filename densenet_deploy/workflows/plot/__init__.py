"""`plot`: the data of the figures of `analysis/plots/`, and their files."""
