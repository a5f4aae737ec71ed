"""Channels removed from the bottlenecks of a float graph, and the weights that remain fitted to what they made before."""
