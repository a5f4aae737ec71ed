"""How INT8 is written, one backend a file."""
