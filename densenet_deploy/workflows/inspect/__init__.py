"""`inspect`: what a model or a plan holds, where its time goes, and a sweep over an architecture's numbers."""
