"""jaxnorm beside its peers: `python -m benchmarks` measures, and updates the tables of docs/."""
