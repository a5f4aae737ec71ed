"""`evaluate`: accuracy on labelled images, which threads decode ahead of the model."""
