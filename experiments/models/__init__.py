"""Flax models that take their normalization from the configuration."""
