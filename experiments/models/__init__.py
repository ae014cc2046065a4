"""Flax models whose normalization comes from the configuration."""
