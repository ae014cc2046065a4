"""A linear map that is given with its transpose.

JAX would find the transpose from the map, equation by equation. Given, it is written as what it is:
few passes over the input, in a native form where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir

from jaxnorm.kernels.checkify import check_nan
from jaxnorm.kernels.standard import only_standard
from jaxnorm.kernels.varying import alike

Arrays = Sequence[jax.Array | None]


class Map(NamedTuple):
    """A linear map of the tangents, which depends on the residuals (hashable).

    Attributes:
        forward: called as forward(form, residuals, tangents), with None for what is not given;
            gives all results.
        transpose: called as transpose(form, residuals, cotangents, wanted), with None for a
            cotangent that is zero; gives the cotangent of each tangent that is wanted.
        form: static.
        results: the type of each result, as `jax.typeof` gives it.
    """

    forward: Callable[[Any, Arrays, Arrays], Sequence[jax.Array]]
    transpose: Callable[[Any, Arrays, Arrays, Sequence[bool]], Arrays]
    form: Any
    results: tuple[Any, ...]


class _Axis(NamedTuple):
    """An axis of `vmap` around the map.

    Attributes:
        residuals: where each residual has it, or None.
        front: 0 where all tangents and results have it in front, None where nothing has it.
        options: its name and size.
    """

    residuals: tuple[int | None, ...]
    front: int | None
    options: tuple[tuple[str, Any], ...]


class _Given(NamedTuple):
    """A map, which of its arguments there are, and the axes of `vmap` around it (hashable)."""

    map: Map
    residuals: tuple[bool, ...]
    tangents: tuple[bool, ...]
    axes: tuple[_Axis, ...] = ()

    def forward(self, *operands: jax.Array) -> list[jax.Array]:
        residuals, tangents = self.split(operands)

        def form(residuals: Arrays, tangents: Arrays) -> list[jax.Array]:
            every = _spread(residuals, self.residuals), _spread(tangents, self.tangents)
            return list(self.map.forward(self.map.form, *every))

        results: list[jax.Array] = self._under_vmap(form)(residuals, tangents)
        return results

    def transpose(self, residuals: Arrays, cotangents: Arrays, wanted: Sequence[bool]) -> Any:
        def form(residuals: Arrays, cotangents: Arrays) -> list[jax.Array | None]:
            every = iter(wanted)
            of_tangents = [given and next(every) for given in self.tangents]
            broadcast = _spread(residuals, self.residuals)
            found = self.map.transpose(self.map.form, broadcast, cotangents, of_tangents)
            return [part for part, given in zip(found, self.tangents, strict=True) if given]

        return self._under_vmap(form)(residuals, cotangents)

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The residuals and the tangents."""
        number = sum(self.residuals)
        return list(operands[:number]), list(operands[number:])

    def _under_vmap(self, form: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        for axis in self.axes:
            in_axes = (list(axis.residuals), axis.front)
            form = jax.vmap(form, in_axes=in_axes, out_axes=axis.front, **dict(axis.options))
        return form


def apply(map: Map, residuals: Arrays, tangents: Arrays) -> list[jax.Array]:
    """The map's results."""
    if only_standard():
        return list(map.forward(map.form, residuals, tangents))
    present = [part for part in (*residuals, *tangents) if part is not None]
    given = _Given(map, _given(residuals), _given(tangents))
    return list(_linear_p.bind(*alike(present), given=given))


def _given(parts: Arrays) -> tuple[bool, ...]:
    return tuple(part is not None for part in parts)


def _spread(present: Arrays, given: Sequence[bool]) -> list[jax.Array | None]:
    """All arguments, None for what is not given."""
    parts = iter(present)
    return [next(parts) if there else None for there in given]


_linear_p = Primitive("jaxnorm_linear")
_linear_p.multiple_results = True


def _forward(*operands: jax.Array, given: _Given) -> list[jax.Array]:
    return given.forward(*operands)


def _abstract(*operands: Any, given: _Given) -> list[Any]:
    varying = operands[0].manual_axis_type
    return [
        result.update(weak_type=False, manual_axis_type=varying) for result in given.map.results
    ]


def _derivative(
    operands: Sequence[jax.Array], doperands: Sequence[Any], *, given: _Given
) -> tuple[Any, Any]:
    """Linear in the tangents; in the residuals, the derivative of the map."""
    results = _linear_p.bind(*operands, given=given)
    residuals, tangents = given.split(operands)
    dresiduals, dtangents = given.split(doperands)
    sums: Any = None
    if any(type(part) is not ad.Zero for part in dtangents):
        moved = [ad.instantiate_zeros(part) for part in dtangents]
        sums = _linear_p.bind(*alike([*residuals, *moved]), given=given)
    moving = [at for at, part in enumerate(dresiduals) if type(part) is not ad.Zero]
    if moving:

        def of_residuals(*moved: jax.Array) -> list[jax.Array]:
            every = list(residuals)
            for at, part in zip(moving, moved, strict=True):
                every[at] = part
            return given.forward(*every, *tangents)

        _, more = jax.jvp(
            of_residuals, [residuals[at] for at in moving], [dresiduals[at] for at in moving]
        )
        sums = more if sums is None else [a + b for a, b in zip(sums, more, strict=True)]
    return results, sums


def _transposed(cotangents: Sequence[Any], *operands: Any, given: _Given) -> list[Any]:
    residuals, tangents = given.split(operands)
    wanted = [ad.is_undefined_primal(part) for part in tangents]
    known = [None if type(part) is ad.Zero else part for part in cotangents]
    found = given.transpose(residuals, known, wanted)
    of_tangents = [
        part if part is not None and want else None
        for part, want in zip(found, wanted, strict=True)
    ]
    return [None] * len(residuals) + of_tangents


def _batched(
    axis: Any, operands: Sequence[jax.Array], dims: Sequence[Any], *, given: _Given
) -> tuple[Any, Any]:
    """One more axis in front, with its name, which collectives may need.

    JAX calls this where nothing is mapped too; then no result is.
    """
    residuals, tangents = given.split(operands)
    of_residuals, of_tangents = given.split(dims)  # None: not batched
    front = None if all(dim is None for dim in dims) else 0
    results = given.map.results
    if front is not None:
        tangents = [
            jnp.broadcast_to(part, (axis.size, *part.shape))
            if dim is None
            else jnp.moveaxis(part, dim, front)
            for part, dim in zip(tangents, of_tangents, strict=True)
        ]
        results = tuple(
            unmapped_aval(axis.size, front, result, axis.explicit_mesh_axis) for result in results
        )
    options = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}
    batched = given._replace(
        map=given.map._replace(results=results),
        axes=(*given.axes, _Axis(tuple(of_residuals), front, tuple(options.items()))),
    )
    found = _linear_p.bind(*alike([*residuals, *tangents]), given=batched)
    return found, [front] * len(found)


_linear_p.def_impl(_forward)
_linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_p] = _derivative
ad.primitive_transposes[_linear_p] = _transposed
batching.fancy_primitive_batchers[_linear_p] = _batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_forward))
check_nan(_linear_p)
