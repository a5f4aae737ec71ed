"""Exact rewrites of ONNX graphs: what they have in common, one file for each, and the orders they run in."""
