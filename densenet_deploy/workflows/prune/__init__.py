"""`prune`: remove bottleneck channels, fit the weights that remain, measure on images that did not choose."""
