"""How INT8 is written, one file per backend."""
