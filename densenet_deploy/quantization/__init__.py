"""INT8: calibration with a cache, equalization, recipes that write it, correction of outputs, and checks."""
