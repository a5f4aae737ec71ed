"""`inspect`: what a model or an engine holds, where its time goes, and sweeps over the numbers of an architecture."""
