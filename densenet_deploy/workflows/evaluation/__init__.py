"""What `evaluate` is made of: the truth about images from a CSV, what each task measures, and the report."""
