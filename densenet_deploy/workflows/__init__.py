"""The workflows, one file each: a function that reads from top to bottom, and the report that it returns."""
