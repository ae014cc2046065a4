"""Conversion of other libraries' parameters and statistics to jaxnorm's and back, as NumPy arrays.

No other library is imported. `from_*` returns what jaxnorm's functions and modules take:

    params: {"scale", "bias"}, without those that the layer does not have
    stats: {"mean", "var"}, with "steps" or "count" if the library has a counter; {} for layer,
        group, instance and RMS normalization
    options: {"momentum", "epsilon"} in jaxnorm's conventions, if known

`to_*` returns arrays under the library's own names and in its shapes.

In these files, `ours` are jaxnorm's names and values, and `theirs` are the other library's.
"""

from jaxnorm.interop.equinox import *
from jaxnorm.interop.haiku import *
from jaxnorm.interop.keras import *
from jaxnorm.interop.pytorch import *
from jaxnorm.public import public_names as _public_names

__all__ = _public_names(globals())
