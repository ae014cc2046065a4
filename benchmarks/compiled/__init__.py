"""What compilers make of normalizations for accelerators that are not there, counted."""

PLATFORMS = {"gpu": "H100", "tpu": "TPU v5e"}
LIBRARIES = ("jaxnorm", "Flax")
FLOOR = {
    "forward": 2,
    "both": 5,
}  # the fewest: the input and the output; then two read, one written
