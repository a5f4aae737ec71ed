"""One observer per file."""
