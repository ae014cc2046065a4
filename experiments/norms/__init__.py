"""The normalizations of models, one file for each kind."""
