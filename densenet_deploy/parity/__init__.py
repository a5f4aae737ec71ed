"""How close two models are: metrics, gates, seeded inputs, comparison layer by layer, and the report."""
