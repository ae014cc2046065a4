"""A linear map that is given with its transpose.

JAX would derive the transpose from the map, equation by equation. A transpose that is given takes
few passes over the input, in a native form where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir

from jaxnorm.kernels.checkify import register_nan_check
from jaxnorm.kernels.standard import only_standard
from jaxnorm.kernels.static import split_arrays
from jaxnorm.kernels.varying import match_varying

Arrays = Sequence[jax.Array | None]


class LinearMap(NamedTuple):
    """A linear map of the tangents, which depends on the residuals (hashable).

    Attributes:
        forward: called as forward(static, residuals, tangents), with None for an absent argument;
            returns all results.
        transpose: called as transpose(static, residuals, cotangents, wanted), with None for an
            absent residual and for a zero cotangent; returns the cotangent of each tangent, which
            may be None if it is not wanted.
        static: the static argument of both, which may hold arrays; `apply_linear` splits it.
        results: the type of each result, as `jax.typeof` returns it.
    """

    forward: Callable[[Any, Arrays, Arrays], Sequence[jax.Array]]
    transpose: Callable[[Any, Arrays, Arrays, Sequence[bool]], Arrays]
    static: Any
    results: tuple[Any, ...]


class _Axis(NamedTuple):
    """An axis of `vmap` around the map.

    Attributes:
        residuals: the position of the axis in each residual, or None.
        front: 0 if all tangents and results have the axis in front, None if nothing has it.
        options: its name and size.
    """

    residuals: tuple[int | None, ...]
    front: int | None
    options: tuple[tuple[str, Any], ...]


class _Call(NamedTuple):
    """A map, which of its arguments are present, and the axes of `vmap` around it (hashable).

    The last residuals are the arrays of the map's static argument.
    """

    map: LinearMap
    residuals: tuple[bool, ...]
    tangents: tuple[bool, ...]
    axes: tuple[_Axis, ...] = ()

    def forward(self, *operands: jax.Array) -> list[jax.Array]:
        residuals, tangents = self.split(operands)

        def forward(residuals: Arrays, tangents: Arrays) -> list[jax.Array]:
            tangents = _with_absent(tangents, self.tangents)
            return list(self.map.forward(*self._static_and_residuals(residuals), tangents))

        results: list[jax.Array] = self._under_vmap(forward)(residuals, tangents)
        return results

    def transpose(self, residuals: Arrays, cotangents: Arrays, wanted: Sequence[bool]) -> Any:
        def transpose(residuals: Arrays, cotangents: Arrays) -> list[jax.Array | None]:
            flags = iter(wanted)
            of_tangents = [present and next(flags) for present in self.tangents]
            arguments = (*self._static_and_residuals(residuals), cotangents, of_tangents)
            results = self.map.transpose(*arguments)
            return [one for one, present in zip(results, self.tangents, strict=True) if present]

        return self._under_vmap(transpose)(residuals, cotangents)

    def _static_and_residuals(self, residuals: Arrays) -> tuple[Any, Arrays]:
        """The static argument with its arrays, and the other residuals."""
        every = _with_absent(residuals, self.residuals)
        number = len(every) - self.map.static.number
        return self.map.static.joined(every[number:]), every[:number]

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The residuals and the tangents."""
        number = sum(self.residuals)
        return list(operands[:number]), list(operands[number:])

    def _under_vmap(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        for axis in self.axes:
            in_axes = (list(axis.residuals), axis.front)
            function = jax.vmap(
                function, in_axes=in_axes, out_axes=axis.front, **dict(axis.options)
            )
        return function


def apply_linear(map: LinearMap, residuals: Arrays, tangents: Arrays) -> list[jax.Array]:
    """The results of the map."""
    if only_standard():
        return list(map.forward(map.static, residuals, tangents))
    static, held = split_arrays(map.static)
    residuals = (*residuals, *held)
    operands = [operand for operand in (*residuals, *tangents) if operand is not None]
    call = _Call(map._replace(static=static), _present(residuals), _present(tangents))
    return list(_linear_p.bind(*match_varying(operands), call=call))


def _present(arguments: Arrays) -> tuple[bool, ...]:
    return tuple(argument is not None for argument in arguments)


def _with_absent(arrays: Arrays, present: Sequence[bool]) -> list[jax.Array | None]:
    """All arguments, None for those that are absent."""
    rest = iter(arrays)
    return [next(rest) if there else None for there in present]


_linear_p = Primitive("jaxnorm_linear")
_linear_p.multiple_results = True


def _forward(*operands: jax.Array, call: _Call) -> list[jax.Array]:
    return call.forward(*operands)


def _abstract(*operands: Any, call: _Call) -> list[Any]:
    varying = operands[0].manual_axis_type
    return [result.update(weak_type=False, manual_axis_type=varying) for result in call.map.results]


def _derivative(
    operands: Sequence[jax.Array], doperands: Sequence[Any], *, call: _Call
) -> tuple[Any, Any]:
    """The map of the tangents' tangents, and the derivative of the map in the residuals."""
    results = _linear_p.bind(*operands, call=call)
    residuals, tangents = call.split(operands)
    dresiduals, dtangents = call.split(doperands)
    dresults: Any = None
    if any(type(tangent) is not ad.Zero for tangent in dtangents):
        dense = [ad.instantiate_zeros(tangent) for tangent in dtangents]
        dresults = _linear_p.bind(*match_varying([*residuals, *dense]), call=call)
    nonzero = [at for at, tangent in enumerate(dresiduals) if type(tangent) is not ad.Zero]
    if nonzero:

        def of_residuals(*replaced: jax.Array) -> list[jax.Array]:
            every = list(residuals)
            for at, residual in zip(nonzero, replaced, strict=True):
                every[at] = residual
            return call.forward(*every, *tangents)

        primals, dprimals = ([source[at] for at in nonzero] for source in (residuals, dresiduals))
        _, more = jax.jvp(of_residuals, primals, dprimals)
        dresults = (
            more if dresults is None else [a + b for a, b in zip(dresults, more, strict=True)]
        )
    return results, dresults


def _transposed(cotangents: Sequence[Any], *operands: Any, call: _Call) -> list[Any]:
    residuals, tangents = call.split(operands)
    wanted = [ad.is_undefined_primal(tangent) for tangent in tangents]
    known = [None if type(cotangent) is ad.Zero else cotangent for cotangent in cotangents]
    results = call.transpose(residuals, known, wanted)
    of_tangents = [
        _sharded_as(tangent.aval, one) if want and one is not None else None
        for one, tangent, want in zip(results, tangents, wanted, strict=True)
    ]
    return [None] * len(residuals) + of_tangents


def _sharded_as(aval: Any, cotangent: jax.Array) -> jax.Array:
    """Reshard a cotangent as its tangent is sharded, on a mesh with explicit axes."""
    if jax.typeof(cotangent).sharding.spec == aval.sharding.spec:
        return cotangent
    resharded: jax.Array = jax.sharding.reshard(cotangent, aval.sharding)
    return resharded


def _batched(
    axis: Any, operands: Sequence[jax.Array], dims: Sequence[Any], *, call: _Call
) -> tuple[Any, Any]:
    """Add an axis in front, with its name, which collectives may need.

    JAX calls this also where no operand has the axis; then no result has it.
    """
    residuals, tangents = call.split(operands)
    of_residuals, of_tangents = call.split(dims)  # None: not batched
    front = None if all(dim is None for dim in dims) else 0
    results = call.map.results
    if front is not None:
        tangents = [
            jnp.broadcast_to(tangent, (axis.size, *tangent.shape))
            if dim is None
            else jnp.moveaxis(tangent, dim, front)
            for tangent, dim in zip(tangents, of_tangents, strict=True)
        ]
        results = tuple(
            unmapped_aval(axis.size, front, result, axis.explicit_mesh_axis) for result in results
        )
    options = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}
    batched = call._replace(
        map=call.map._replace(results=results),
        axes=(*call.axes, _Axis(tuple(of_residuals), front, tuple(options.items()))),
    )
    found = _linear_p.bind(*match_varying([*residuals, *tangents]), call=batched)
    return found, [front] * len(found)


_linear_p.def_impl(_forward)
_linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_p] = _derivative
ad.primitive_transposes[_linear_p] = _transposed
batching.fancy_primitive_batchers[_linear_p] = _batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_forward))
register_nan_check(_linear_p)
