"""A static page that runs a model in a browser: its files, and the folder they are written to."""
