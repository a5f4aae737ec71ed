"""From a spec or a checkpoint to a torch module."""
