"""Replacing the normalizations of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn

from jaxnorm import replacements as _replacements
from jaxnorm.linen import batch, sample
from jaxnorm.replacements import Path, Replacements, Rule

__all__ = ["replace_norms"]

_OURS = {**vars(batch), **vars(sample)}
_SAME_NAMES = {getattr(nn, name): _OURS[name] for name in _replacements.OF_FLAX}


@contextmanager
def replace_norms(rule: Rule | None = None) -> Iterator[Replacements]:
    """Run `init` and `apply` of any model with other normalizations in place of its own.

    Inside the context, each normalization that the model calls is replaced at the same path.
    Variables keep their paths and names, so old checkpoints load. The replacement takes over the
    options that mean the same in every normalization (`epsilon`, `dtype`, `use_scale`, the
    initializers, the axes of the channels and so on). If both measure over the batch, or both over
    the features, and so on, it takes over all options that both have, such as `momentum`,
    `axis_name` and `num_groups`. A `use_running_average` in a call is ignored if the replacement
    has no statistics.

    Enter the context inside the function that is jitted: JAX does not trace a function again that
    it compiled outside. Modules inside `nn.jit` may have been traced before too.

    Args:
        rule: {type or path: replacement}, of which the first matching key applies. A type includes
            the classes derived from it, except those with a `__call__` of their own, which stay
            unless the rule names them. A path, as a tuple of names or as a string, is that of a
            normalization or of a part of the model, for example "encoder" or
            `"block_*/BatchNorm_0"`; `*` stands for any characters. A replacement is a class, a
            `functools.partial` of a class and its options, or None to keep the old one. Instead of
            a dict, the rule may be a function of the path, as a string, and the module that returns
            one of these or an unbound module. Without a rule, each normalization of Flax becomes
            the one of jaxnorm with the same name.

    Yields:
        The normalizations that were called, a list of tuples (path, norm, measured_over, becomes,
        note), whose `str()` is a table. `note` says what is lost, for example the running
        statistics of a `BatchNorm` that becomes a `GroupNorm`, or why a normalization stays.

    Raises:
        TypeError: a rule that is neither a dict nor a function, or a key or a replacement of
            another type.
        ValueError: options that do not fit; at the end of the context, a key that matched no
            normalization, or a function that replaced none (the message lists the normalizations
            that were called).

    Example:
        >>> from functools import partial
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
        >>> model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=True)])
        >>> x = jnp.ones((2, 3))
        >>> with jnn.replace_norms({nn.BatchNorm: partial(jnn.GroupNorm, num_groups=2)}) as norms:
        ...     variables = model.init(jax.random.key(0), x)
        >>> print(norms[0].path, norms[0].becomes, list(variables))
        layers_1 GroupNorm of jaxnorm.linen ['params']
    """
    chosen = _SAME_NAMES if rule is None else rule
    _replacements.check_rule(chosen, nn.Module)
    seen: dict[Path, Any] = {}
    report = Replacements()
    replacing = False

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        nonlocal replacing
        module = context.module
        is_call = context.method_name == "__call__" and not replacing
        if not (is_call and _replacements.is_norm(module, chosen)):
            return inner(*args, **options)
        new = _replacements.chosen(chosen, module.path, module)
        if module.path not in seen:
            seen[module.path] = module.clone(parent=None)
            report.append(_replacements.described(chosen, module.path, module, new, nn.Module))
        if new is None:
            return inner(*args, **options)
        replacing = True
        try:
            return _call(_bound(module, new), *args, **options)
        except ValueError as error:
            error.add_note(f"This is in the place of {'/'.join(module.path)!r}.")
            raise
        finally:
            replacing = False

    with nn.intercept_methods(intercepted):
        yield report
    if not seen:
        raise ValueError(
            "no normalization was called inside the context; JAX does not trace a function again "
            "that it compiled outside: enter the context inside the function that is jitted"
        )
    _replacements.warn(report.staying(), stacklevel=3)
    if rule is not None:
        _replacements.check_matched(rule, seen.items(), report)


def _bound(module: Any, new: Any) -> nn.Module:
    """What takes the place of a module, with the variables of the module."""
    if isinstance(new, nn.Module):
        return new.clone(parent=module.scope)
    kind, options = _replacements.kind_and_options(module.path, module, new, nn.Module)
    replacement: nn.Module = kind(**options, parent=module.scope)
    return replacement


def _call(module: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Call a module, without `use_running_average` if it does not take that."""
    name = "use_running_average"
    if name not in inspect.signature(type(module).__call__).parameters:
        args, options = args[1:], {key: options[key] for key in options if key != name}
    return module(x, *args, **options)
