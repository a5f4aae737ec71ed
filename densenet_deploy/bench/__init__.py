"""Time models against each other: a candidate per process, in alternating rounds, with an interval for each figure."""
