"""Studies of normalization on real data, with jaxnorm used as any user would use it."""
