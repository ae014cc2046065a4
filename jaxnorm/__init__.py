"""jaxnorm: normalization for JAX, exact, as pure functions.

The Flax modules live in `jaxnorm.linen` and `jaxnorm.nnx`; importing `jaxnorm` imports no flax.
"""

from jaxnorm import interop as interop
from jaxnorm.batch import *
from jaxnorm.diagnose import *
from jaxnorm.diagnosis import *
from jaxnorm.distributed import *
from jaxnorm.finding import *
from jaxnorm.fold import *
from jaxnorm.input_stats import *
from jaxnorm.inputs import *
from jaxnorm.kernels.standard import *
from jaxnorm.online import *
from jaxnorm.parameters import *
from jaxnorm.popart import *
from jaxnorm.public import public_names as _public_names
from jaxnorm.replicas import *
from jaxnorm.returns import *
from jaxnorm.running import *
from jaxnorm.sample import *
from jaxnorm.statistics import *
from jaxnorm.trees import *
from jaxnorm.weight_standardization import *

__version__ = "0.2.0"
__all__ = _public_names(globals())
