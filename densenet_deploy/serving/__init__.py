"""Models in production: batch jobs, and what servers need to serve them."""
