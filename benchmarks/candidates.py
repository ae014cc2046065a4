"""One normalization of each library on one input.

`forward` returns the output and the new state. `both` also returns the gradients of the input and
of the parameters for a given cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.forms import FORMS
from benchmarks.peers import Peer, peers, torch_norm, torch_parameters
from benchmarks.timing import passes

# Relative to the largest value. PyTorch sums the gradient of the RMS scale in bfloat16.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
# Here only the output and dx are compared: NNX sums the gradients of scale and bias in bfloat16,
# and over a hundred thousand values their error is a third of the largest one.
ROUNDED = {("evaluation", "bfloat16", "Flax NNX")}
RESULTS = ("output", "dx", "dscale", "dbias")


class Candidate(NamedTuple):
    """The compiled normalization of a library."""

    library: str
    forward: Callable[[], Any]
    both: Callable[[], Any]
    arrays: Callable[[Any], list[np.ndarray]]

    def results(self) -> list[np.ndarray]:
        """Return the output and the gradients as float32 arrays with channels last."""
        return self.arrays(self.both())


def candidates(norm: str, shape: tuple[int, ...], dtype: str) -> Iterator[Candidate]:
    """Yield the normalization of each library for one random input and cotangent, ours first."""
    x, cotangent = drawn(shape)
    ours, *others = peers(norm, shape, jnp.dtype(dtype))
    for name, form in FORMS.items():
        with form():
            candidate = _in_jax(ours._replace(library=name), x, cotangent, dtype)
        yield candidate
    for peer in others:
        yield _in_jax(peer, x, cotangent, dtype)
    yield _in_torch(norm, x, cotangent, dtype)


def drawn(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return a random input and cotangent."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, np.float32) for _ in range(2)]


def check_alike(several: list[Candidate], norm: str, dtype: str) -> None:
    """Raise an error if a library has another output or gradient than the first one."""
    first, *others = several
    expected = first.results()
    for other in others:
        names = RESULTS[:2] if (norm, dtype, other.library) in ROUNDED else RESULTS
        for name, array, reference in zip(names, other.results(), expected, strict=False):
            error = np.abs(array - reference).max() / np.abs(reference).max()
            if not error <= TOLERANCES[dtype]:
                raise ValueError(
                    f"{name} of {other.library} differs from that of {first.library} by "
                    f"{error:.1e} of its largest value: they do not compute the same function"
                )


def _in_jax(peer: Peer, x: np.ndarray, cotangent: np.ndarray, dtype: str) -> Candidate:
    def native(array: np.ndarray) -> jax.Array:
        return jnp.asarray(np.moveaxis(array, -1, 1) if peer.channels_first else array, dtype)

    def arrays(result: Any) -> list[np.ndarray]:
        y, (of_parameters, dx), _ = result
        full = (np.asarray(array, np.float32) for array in (y, dx))
        last = [np.moveaxis(array, 1, -1) if peer.channels_first else array for array in full]
        return [*last, *map(np.asarray, of_parameters)]

    called = passes(peer.apply, peer.parameters, native(x), native(cotangent))
    return Candidate(peer.library, **called, arrays=arrays)


def _in_torch(norm: str, x: np.ndarray, cotangent: np.ndarray, dtype: str) -> Candidate:
    first = norm not in ("layer", "rms")

    def native(array: np.ndarray) -> torch.Tensor:
        moved = np.moveaxis(array, -1, 1) if first else array
        return torch.from_numpy(np.ascontiguousarray(moved)).to(getattr(torch, dtype))

    function = torch_norm(norm, x.shape[-1])
    inputs = [native(x), *torch_parameters(norm, x.shape[-1], dtype)]
    native_cotangent = native(cotangent)
    for tensor in inputs:
        tensor.requires_grad_()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return function(*inputs)

    def both() -> Any:
        y = function(*inputs)
        return y, torch.autograd.grad(y, inputs, native_cotangent)

    def arrays(result: Any) -> list[np.ndarray]:
        y, (dx, *of_parameters) = result
        full = [array.detach().float().numpy() for array in (y, dx, *of_parameters)]
        last = [np.moveaxis(array, 1, -1) if first else array for array in full[:2]]
        return last + full[2:]

    return Candidate("PyTorch", forward, both, arrays)
