"""`quantize`: calibrate, write INT8 by a recipe, check, and put back the layers that lose too much."""
