"""Training in plain PyTorch: data, batches, the loop, several processes, and the state from which it resumes."""
