"""Parameters and statistics of other libraries, to ours and back, as NumPy arrays.

No other framework is imported. `from_*` gives what our functions and modules take,

    params: {"scale", "bias"}, those that there are
    stats: {"mean", "var"} and, where the library counts, "steps" or "count"; {} for layer, group,
        instance and RMS normalization
    options: {"momentum", "epsilon"} as ours, where known

and `to_*` gives the library's own names and shapes back.
"""

from jaxnorm.interop.equinox import from_equinox, to_equinox
from jaxnorm.interop.haiku import from_haiku, to_haiku
from jaxnorm.interop.keras import (
    from_keras,
    from_tensorflow_renorm,
    to_keras,
    to_tensorflow_renorm,
)
from jaxnorm.interop.pytorch import (
    from_pytorch,
    from_pytorch_all,
    to_pytorch,
    to_pytorch_all,
)

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_pytorch",
    "from_pytorch_all",
    "from_tensorflow_renorm",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_pytorch",
    "to_pytorch_all",
    "to_tensorflow_renorm",
]
