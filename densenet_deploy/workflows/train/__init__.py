"""Train: labelled images → a checkpoint with all the facts that `export` needs."""
