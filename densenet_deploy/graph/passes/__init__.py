"""One exact rewrite a file."""
