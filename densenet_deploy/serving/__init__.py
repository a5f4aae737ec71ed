"""Models put to work: batch jobs."""
