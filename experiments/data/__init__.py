"""Data sets as components: their examples, prepared by TFDS, as scaled arrays and batches."""
