"""Models in production: what servers of others need to serve them."""
