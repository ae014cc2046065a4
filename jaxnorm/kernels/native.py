"""Operations in two forms, and the decision which of them runs.

The *plain form* of an operation is a function of jax.numpy, and its definition. The *native form*
calls a handler of the library (`library.py`) on the same operands. It runs where the platform is a
CPU, the input has a view (`view.py`), and one device holds the whole input, or its shard under
`pmap` and `shard_map`. The plain form runs on other platforms, in exported programs, and where
`jit` partitions the operation over devices. It runs for given statistics too (`Form.native`): a
value is then one multiplication, which is fused with the operations around it. Where the input is
measured, measuring, applying and the derivative are all native: in the models of the benchmarks
that took no more time than a native measurement beside a plain value and derivative, as far as the
noise let it be seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from jaxnorm.kernels.checkify import register_nan_check
from jaxnorm.kernels.library import library
from jaxnorm.kernels.standard import only_standard
from jaxnorm.kernels.static import split_arrays
from jaxnorm.kernels.target import PLATFORMS, Target, compiling_for, pretended, target_of
from jaxnorm.kernels.varying import match_varying
from jaxnorm.kernels.view import MaskView, View

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)

Result = tuple[tuple[int, ...], Any]


class Operation(NamedTuple):
    """An operation in both forms (hashable).

    Attributes:
        handler: the name of the handler in the library.
        plain: called as plain(static, *operands), with None for an absent operand; returns the
            results in the handler's order, None for those that are not wanted.
        static: the static argument of `plain`, which may hold arrays; `run` splits it.
        view: the view of the input; None if there is no native form.
        results: shape and dtype of each result of the handler, None for those that are not wanted.
        attributes: further attributes of the handler.
        scalar: whether the last operand is one number, the same for the whole batch of a `vmap`;
            `static` holds no arrays then.
        present: for each operand of the handler, whether it is present.
        batch_axes: the number of axes that `vmap` put in front of all operands and results.
    """

    handler: str
    plain: Callable[..., Sequence[jax.Array | None]]
    static: Any
    view: View | None
    results: tuple[Result | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    scalar: bool = False
    present: tuple[bool, ...] = ()
    batch_axes: int = 0


def has_native(x: jax.Array, view: View | None) -> bool:
    """Whether an operation on `x` has a native form that may run."""
    if only_standard():
        return False
    explicit = any(jax.typeof(x).sharding.spec)  # the shardings follow from the plain form
    return view is not None and x.dtype in DTYPES and not explicit


def run(operation: Operation, *operands: jax.Array | None) -> list[jax.Array | None]:
    """The results of an operation, None for those that are not wanted."""
    static, held = split_arrays(operation.static)
    present = tuple(operand is not None for operand in operands)
    operation = operation._replace(static=static, present=present)
    arrays = match_varying([*(operand for operand in operands if operand is not None), *held])
    explicit = [jax.typeof(array).sharding for array in arrays]
    if only_standard():
        results = iter(_plain(*arrays, operation=operation))
    elif any(any(sharding.spec) for sharding in explicit):
        results = iter(_on_explicit_mesh(explicit[0].mesh.size, operation, arrays))
    else:
        results = iter(_native_p.bind(*arrays, operation=operation))
    return [None if result is None else next(results) for result in operation.results]


def _on_explicit_mesh(
    devices: int, operation: Operation, arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """The plain form on a mesh with explicit axes: the shardings of results follow from it."""

    def plain(platform: str) -> Callable[..., list[jax.Array]]:
        def on_platform(*arrays: jax.Array) -> list[jax.Array]:
            with compiling_for(Target(pretended() or platform, devices)):
                return _plain(*arrays, operation=operation)

        return on_platform

    on_gpu = plain("gpu")
    results: list[jax.Array] = jax.lax.platform_dependent(
        *arrays,
        cpu=plain("cpu"),
        cuda=on_gpu,
        rocm=on_gpu,
        tpu=plain("tpu"),
        default=plain("any"),
    )
    return results


def _plain(*operands: jax.Array, operation: Operation) -> list[jax.Array]:
    """The plain form, from the operands that are present to the results that are wanted."""

    def plain(*operands: jax.Array) -> list[jax.Array]:
        arrays = iter(operands)
        arguments = [next(arrays) if present else None for present in operation.present]
        static = operation.static.joined(list(arrays))
        results = operation.plain(static, *arguments)
        return [result for result in results if result is not None]

    axes: list[int | None] = [0] * len(operands)
    if operation.scalar:
        axes[-1] = None
    for _ in range(operation.batch_axes):
        plain = jax.vmap(plain, in_axes=tuple(axes))
    return plain(*operands)


def _native(*operands: jax.Array, operation: Operation) -> list[jax.Array]:
    """The call of the handler, with empty arrays for absent operands and unwanted results."""
    arrays, dtype = iter(operands), _statistics_dtype(operands[0].dtype)
    arguments = [next(arrays) if present else jnp.zeros(0, dtype) for present in operation.present]
    types = [
        jax.ShapeDtypeStruct((0,), dtype) if result is None else jax.ShapeDtypeStruct(*result)
        for result in operation.results
    ]
    assert operation.view is not None
    call = jax.ffi.ffi_call(operation.handler, types)
    results = call(*arguments, **_attributes(operation.view), **dict(operation.attributes))
    return [one for one, wanted in zip(results, operation.results, strict=True) if wanted]


def _attributes(view: View) -> dict[str, Any]:
    """The view as attributes of a handler."""
    *extents, by_row, mask = view
    sizes = {name: np.int64(size) for name, size in zip("ARGST", extents, strict=True)}
    of_mask = MaskView((), "") if mask is None else mask
    sizes["mask_rows"] = np.int64(of_mask.rows)
    varies = {f"mask_{name.lower()}": name in of_mask.along for name in "GT"}
    return sizes | varies | {"by_row": by_row}


def _statistics_dtype(dtype: Any) -> Any:
    """The dtype of statistics and parameters."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


_native_p = Primitive("jaxnorm_native")
_native_p.multiple_results = True


def _evaluate(*operands: jax.Array, operation: Operation) -> Any:
    """The results outside `jit`: compiled, or step by step while JAX debugs."""
    form = _plain if _debugging() else _compiled
    return form(*operands, operation=operation)


def _debugging() -> bool:
    """Whether JAX runs `jit` as Python, or searches for the operation that yields NaN or inf."""
    config: Any = jax.config
    return bool(config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs)


@functools.partial(jax.jit, static_argnames="operation")
def _compiled(*operands: jax.Array, operation: Operation) -> Any:
    return _native_p.bind(*operands, operation=operation)


def _abstract(*operands: Any, operation: Operation) -> list[Any]:
    x = operands[0]
    return [
        x.update(
            shape=shape,
            dtype=jnp.dtype(dtype),
            weak_type=False,
            sharding=x.sharding.update(spec=PartitionSpec(*(None for _ in shape))),
        )
        for shape, dtype in filter(None, operation.results)
    ]


def _batched(
    operands: Sequence[jax.Array], axes: Sequence[Any], *, operation: Operation
) -> tuple[Any, Any]:
    """Move the batch axis to the front of all operands, where the view takes it into A."""
    if operation.scalar and axes[-1] is not None:
        plain = functools.partial(_plain, operation=operation)
        results = jax.vmap(plain, in_axes=tuple(axes))(*operands)
        return results, [0] * len(results)
    size = next(
        operand.shape[axis]
        for operand, axis in zip(operands, axes, strict=True)
        if axis is not None
    )
    split = len(operands) - operation.scalar
    front = [
        jnp.broadcast_to(operand, (size, *operand.shape))
        if axis is None
        else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands[:split], axes[:split], strict=True)
    ]
    batched = operation._replace(
        view=operation.view and operation.view._replace(A=size * operation.view.A),
        results=tuple(one and ((size, *one[0]), one[1]) for one in operation.results),
        batch_axes=operation.batch_axes + 1,
    )
    results = _native_p.bind(*match_varying([*front, *operands[split:]]), operation=batched)
    return results, [0] * len(results)


def _derivative(
    operands: Sequence[jax.Array], tangents: Sequence[Any], *, operation: Operation
) -> tuple[Any, Any]:
    """The derivative of the plain form."""
    nonzero = [at for at, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def plain(*replaced: jax.Array) -> list[jax.Array]:
        every = list(operands)
        for at, operand in zip(nonzero, replaced, strict=True):
            every[at] = operand
        return _plain(*every, operation=operation)

    results = _native_p.bind(*operands, operation=operation)
    primals, dprimals = ([source[at] for at in nonzero] for source in (operands, tangents))
    _, dresults = jax.jvp(plain, primals, dprimals)
    return results, dresults


def _lower(platform: str, context: Any, *operands: Any, operation: Operation) -> Any:
    native = platform == "cpu" and _runs_native(operation, context.module_context)
    with compiling_for(target_of(context.module_context, platform)):
        form = _native if native else _plain
        return mlir.lower_fun(form)(context, *operands, operation=operation)


def _runs_native(operation: Operation, module: Any) -> bool:
    """Whether a program that is lowered for the CPU takes the native form."""
    several = len(module.platforms) > 1 or target_of(module, "cpu").devices > 1
    exported = module.lowering_parameters.for_export
    return not (operation.view is None or pretended() or several or exported) and library().loaded


_native_p.def_impl(_evaluate)
_native_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_native_p] = _batched
ad.primitive_jvps[_native_p] = _derivative
mlir.register_lowering(_native_p, functools.partial(_lower, "any"))
for _platform in PLATFORMS:
    mlir.register_lowering(_native_p, functools.partial(_lower, _platform), platform=_platform)
register_nan_check(_native_p)
