"""Properties: what must hold for every input of a kind, tried on inputs that Hypothesis makes up."""
