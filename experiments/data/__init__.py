"""Data sets as TFDS builders, and their way into NumPy arrays and batches."""
