"""The normalizations that a model can take, one file each kind."""
