"""The identity of a run and its files."""
