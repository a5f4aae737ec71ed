"""The workflows of the toolkit, one file each: a function that reads top to bottom, and the report it returns."""
