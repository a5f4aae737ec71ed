"""One exact rewrite per file."""
