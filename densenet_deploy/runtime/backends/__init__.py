"""One backend a file; its library is imported when a model is opened."""
