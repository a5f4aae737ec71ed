"""Numbers as pictures, one figure a file."""
