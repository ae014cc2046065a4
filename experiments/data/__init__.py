"""Data set components. TFDS prepares their examples; they become scaled arrays and batches."""
