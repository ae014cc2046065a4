"""Native kernels for the CPU: measuring, standardizing, and the derivative."""

from jaxnorm.kernels.library import status

__all__ = ["status"]
