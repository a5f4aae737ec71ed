"""INT8: ranges collected from calibration data, kept in a cache that says why it missed."""
