"""What compilers make of normalizations for accelerators that are not there, counted."""

PLATFORMS = {"gpu": "H100", "tpu": "TPU v5e"}
LIBRARIES = ("jaxnorm", "Flax")
# The fewest streams: the input and the output; for both passes also two are read and one written.
FLOOR = {"forward": 2, "both": 5}
