"""`benchmark`: any models against each other. The road is in the file of the package's name, as in its neighbours."""
