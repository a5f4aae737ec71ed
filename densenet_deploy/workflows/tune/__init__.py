"""`tune`: which file to ship from this machine, on which backend, with how many threads."""
