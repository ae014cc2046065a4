"""Native forms of what jaxnorm measures, applies and differentiates, for the CPU."""

from jaxnorm.kernels.library import status

__all__ = ["status"]
