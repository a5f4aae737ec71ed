"""`tune`: make the forms of a model, time them, compare answers, and say which one to ship from this machine."""
