"""Batch jobs: a fixed plan of shards, each classified by a worker and written as one whole file."""
