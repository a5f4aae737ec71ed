"""Channels removed from the bottlenecks of a float graph; what remains is fitted to what its layer made before."""
