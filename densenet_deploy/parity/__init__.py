"""Proof that two models compute the same: metrics, gates, seeded inputs, layer by layer, and the report of it."""
