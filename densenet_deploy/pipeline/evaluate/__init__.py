"""`evaluate`: accuracy on labelled pictures, which threads decode ahead of the model."""
