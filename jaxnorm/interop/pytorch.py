"""Conversion of PyTorch's state dicts: of one normalization, or of those of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnorm.interop import entries as _entries
from jaxnorm.interop import patterns as _patterns
from jaxnorm.interop.entries import Array, Arrays, Converted

__all__ = ["from_pytorch", "from_pytorch_all", "to_pytorch", "to_pytorch_all"]

_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_OLD = {"gamma": "weight", "beta": "bias"}  # TensorFlow's names, as in checkpoints of early BERTs
_BATCHES = "num_batches_tracked"
_RUNNING = ("running_mean", "running_var")
_ENTRIES = (*_NAMES, *_OLD, _BATCHES)


def from_pytorch(
    state_dict: Mapping[str, Any],
    prefix: str = "",
    *,
    momentum: float | None = 0.1,
    epsilon: float | None = None,
    values_per_channel: int | None = None,
) -> Converted:
    """Convert one normalization of PyTorch: return its parameters, statistics and options.

    `weight` becomes scale, and `num_batches_tracked` steps. `running_mean` and `running_var` become
    mean and var, unchanged, so that evaluation gives the same result. `gamma` and `beta`, as in
    checkpoints of early BERTs, are read as `weight` and `bias`.

    Args:
        state_dict: the state dict of a module, or the content of a safetensors file, with NumPy
            arrays or values that convert to NumPy arrays (tensors on the CPU).
        prefix: the path of the layer, for example "layer1.0.bn1"; "" for the state dict of the
            layer itself.
        momentum: the momentum of the PyTorch module, which the state dict does not hold. It is the
            weight of the new value; jaxnorm's is one minus it. None is PyTorch's cumulative
            average. It counts batches, and jaxnorm's counts values, so give `values_per_channel`
            too: count is the number of batches times it.
        epsilon: the epsilon of the PyTorch module; by default PyTorch's, 1e-5. A state dict with
            only a weight may be that of an RMSNorm (whose default is the machine epsilon) or of a
            LayerNorm without bias; then the options have no epsilon by default.
        values_per_channel: n, the number of values of a channel in a training batch (examples times
            positions). It makes the variance biased, var * (n - 1) / n, as in jaxnorm's training.
            Evaluation then differs from PyTorch's by this factor.

    Returns:
        params {"scale", "bias"}, without those that the layer does not have, of the shape [C]
        (LayerNorm and RMSNorm: `normalized_shape`); stats {"mean", "var", "steps"}, with "count" if
        `momentum` is None, or {} for LayerNorm, GroupNorm, RMSNorm and InstanceNorm without running
        statistics; options {"momentum", "epsilon"} in jaxnorm's conventions. Arrays are copies in
        the given dtype, statistics in float32 at least.

    Raises:
        TypeError: a value that does not convert to a NumPy array (the message says how to convert
            it) or does not hold floating-point numbers.
        ValueError: a prefix that is not that of a normalization (the message lists these), a
            missing entry, both `gamma` and `weight`, shapes that differ, a momentum outside [0, 1],
            a `values_per_channel` below 2.

    Conventions:
        PyTorch normalizes by the biased variance and keeps the unbiased variance. It evaluates an
        InstanceNorm with running statistics as a BatchNorm, as `jaxnorm.batch_norm` does.

    References:
        torch.nn.BatchNorm2d and its `_NormBase`, PyTorch 2.13.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> state_dict = {"bn1.weight": np.ones(2), "bn1.bias": np.zeros(2)}
        >>> state_dict |= {"bn1.running_mean": np.ones(2), "bn1.running_var": np.full(2, 4.0)}
        >>> params, stats, options = jn.interop.from_pytorch(state_dict, prefix="bn1")
        >>> options
        {'momentum': 0.9, 'epsilon': 1e-05}
        >>> stats["var"]
        array([4., 4.])
    """
    _entries.check_weight("momentum", momentum)
    _entries.check_epsilon(epsilon)
    _check_values(values_per_channel)
    own = _renamed(prefix, _entries.layer(state_dict, prefix, _ENTRIES, "."))
    has_stats = not own.keys().isdisjoint((*_RUNNING, _BATCHES))
    _entries.check_all_there(prefix, own, _RUNNING if has_stats else ("weight",))
    params, stats = _entries.ours(own, _NAMES)
    if stats and values_per_channel is not None:
        n = values_per_channel
        stats["var"] = _entries.scaled(stats["var"], (n - 1) / n)
    if _BATCHES in own:
        stats["steps"] = _entries.as_counter(_BATCHES, own[_BATCHES], np.int32)
    if epsilon is None and (stats or "bias" in params):
        epsilon = 1e-5
    if stats and momentum is None:
        stats["count"] = _count(prefix, stats, values_per_channel)
        return params, stats, {"momentum": None} | _entries.options_of(stats, None, epsilon)
    ours = None if momentum is None else 1 - momentum
    return params, stats, _entries.options_of(stats, ours, epsilon)


def to_pytorch(
    params: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    prefix: str = "",
    *,
    values_per_channel: int | None = None,
) -> Arrays:
    """Convert parameters and statistics to the state dict of one normalization of PyTorch.

    This function inverts `from_pytorch` bit for bit.

    Args:
        params: {"scale", "bias"}, one of them or none; NumPy or jax arrays.
        stats: {"mean", "var"}, with or without "steps" or "count"; {} or None for layers without
            statistics. "steps", or "count" by `values_per_channel`, becomes `num_batches_tracked`,
            int64; without either, the result does not have this entry, which `load_state_dict`
            allows. The mark of `jaxnorm.freeze_stats` is left out.
        prefix: the path of the layer in the state dict.
        values_per_channel: n, the number of values of a channel in a training batch. It makes the
            variance unbiased, var * n / (n - 1), as in PyTorch's training, and converts a count of
            values to a count of batches.

    Returns:
        {"prefix.weight": array, ...}; for tensors, call `torch.from_numpy` on each array.

    Raises:
        TypeError: a value that does not convert to a NumPy array of floating-point numbers.
        ValueError: unknown or missing entries, shapes that differ, a count without steps and
            without `values_per_channel`.

    Example:
        >>> import jaxnorm as jn
        >>> sorted(jn.interop.to_pytorch({}, jn.init_renorm_stats(2), prefix="bn1"))
        ['bn1.num_batches_tracked', 'bn1.running_mean', 'bn1.running_var']
    """
    _check_values(values_per_channel)
    params, stats, counts = _entries.read(params, stats)
    if stats and values_per_channel is not None:
        n = values_per_channel
        stats["var"] = _entries.scaled(stats["var"], n / (n - 1))
    arrays = params | stats
    own = {theirs: arrays[ours] for theirs, ours in _NAMES.items() if ours in arrays}
    if counts:
        own[_BATCHES] = _batches(counts, values_per_channel)
    return _entries.joined(prefix, ".", own)


def from_pytorch_all(
    state_dict: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert all normalizations of a PyTorch model to the variables of a Linen model.

    Each layer is converted as by `from_pytorch` if a pattern matches its prefix and its entries are
    those of a normalization (vectors under its names). Convolutions and other layers under the same
    pattern are not converted.

    Args:
        state_dict: the state dict of the model.
        names: a dict from patterns of PyTorch's prefixes to templates of Linen's paths, for example
            {"layer*.*.bn?": "layer{}_{}/norm_{}"}. `*` stands for one or more characters and `?`
            for one, except "." and "/". The text of each replaces a {} of the template, in order.
            The first pattern that matches is used.

    Returns:
        {"params", "batch_stats"}, nested dicts as in Linen, and the rest: every entry that was not
        converted, unchanged, including `num_batches_tracked` (which a Linen BatchNorm cannot hold).
        `{**rest, **to_pytorch_all(variables, names)}` is the state dict again, with `weight` and
        `bias` for `gamma` and `beta`.

    Raises:
        TypeError, ValueError: those of `from_pytorch`; a pattern that matches no normalization (the
            message lists the prefixes of all normalizations), that has another number of wildcards
            than its template has {}, or that cannot be inverted; two prefixes with one path.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> vector, kernel = np.ones(2), np.ones((2, 2, 3, 3))
        >>> model = {"block1.conv.weight": kernel, "block1.norm.weight": vector}
        >>> variables, rest = jn.interop.from_pytorch_all(model, {"block*.norm": "block_{}/norm"})
        >>> variables["params"], list(rest)
        ({'block_1': {'norm': {'scale': array([1., 1.])}}}, ['block1.conv.weight'])
    """
    _patterns.check_names(names)
    _entries.check_mapping("the state dict", state_dict)
    prefixes = _entries.normalizations(state_dict, _ENTRIES, ".")
    paths = {prefix: _patterns.ours(prefix, names) for prefix in prefixes}
    found = {prefix: path for prefix, path in paths.items() if path is not None}
    _check_matched(names, prefixes, _patterns.ours, _entries.groups(state_dict, "."))
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    rest = dict(state_dict)
    for prefix, path in found.items():
        names_of = (f"{prefix}.{name}" if prefix else name for name in (*_NAMES, *_OLD))
        own = {name: rest.pop(name) for name in names_of if name in state_dict}
        params, stats, _ = from_pytorch(own, prefix)
        for collection, arrays in (("params", params), ("batch_stats", stats)):
            _put(variables[collection], path, arrays)
    return variables, rest


def to_pytorch_all(variables: Mapping[str, Any], names: Mapping[str, str]) -> Arrays:
    """Convert the variables of a Linen model to the entries of a PyTorch model's normalizations.

    This function inverts `from_pytorch_all`.

    Args:
        variables: {"params", "batch_stats"} of a Linen model, nested dicts.
        names: as for `from_pytorch_all`.

    Returns:
        {"prefix.weight": array, ...} of the normalizations whose path matches a template.

    Raises:
        ValueError: a template that matches no normalization (the message lists the paths of all
            normalizations), and the errors of `to_pytorch`.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> variables = {"params": {"block_1": {"norm": {"scale": np.ones(2)}}}}
        >>> jn.interop.to_pytorch_all(variables, {"block*.norm": "block_{}/norm"})
        {'block1.norm.weight': array([1., 1.])}
    """
    _patterns.check_names(names)
    _entries.check_mapping("the variables", variables)
    params = _normalizations(variables.get("params", {}))
    stats = _normalizations(variables.get("batch_stats", {}))
    paths = [*params, *(path for path in stats if path not in params)]
    prefixes = {path: _patterns.theirs(path, names) for path in paths}
    found = {path: prefix for path, prefix in prefixes.items() if prefix is not None}
    _check_matched(names, paths, _patterns.theirs, variables)
    state_dict: Arrays = {}
    for path, prefix in found.items():
        state_dict |= to_pytorch(params.get(path, {}), stats.get(path, {}), prefix)
    return state_dict


def _check_values(values_per_channel: int | None) -> None:
    """Check for an integer of 2 or more, or None."""
    if values_per_channel is None:
        return
    if isinstance(values_per_channel, bool) or not isinstance(values_per_channel, int):
        raise TypeError(f"values_per_channel must be an integer, got {values_per_channel!r}")
    if values_per_channel < 2:
        raise ValueError(
            f"values_per_channel must be 2 or more, got {values_per_channel}: the unbiased "
            "variance of one value is not defined"
        )


def _renamed(prefix: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a layer, with old names replaced by current ones."""
    twice = [f"{old} and {new}" for old, new in _OLD.items() if {old, new} <= own.keys()]
    if twice:
        raise ValueError(
            f"the layer at {prefix!r} has both {' and both '.join(twice)}, two names of one array; "
            "leave one of the two out"
        )
    return {_OLD.get(name, name): value for name, value in own.items()}


def _count(prefix: str, stats: Arrays, values_per_channel: int | None) -> Array:
    """The number of values so far, from PyTorch's number of batches."""
    if values_per_channel is None or "steps" not in stats:
        raise ValueError(
            f"momentum=None at {prefix!r} is PyTorch's cumulative average, which counts batches, "
            "but ours counts values; give values_per_channel, the number of values of a channel in "
            f"a batch, and a state dict with {_BATCHES}; for evaluation only, leave momentum out"
        )
    return np.asarray(int(stats["steps"]) * values_per_channel, np.float32)


def _batches(counts: Mapping[str, Any], values_per_channel: int | None) -> Array:
    """`num_batches_tracked`, from the number of steps or of values."""
    if "steps" in counts:
        return _entries.as_counter("steps", counts["steps"], np.int64)
    if values_per_channel is None:
        raise ValueError(
            "stats have a count of values, but PyTorch counts batches; give values_per_channel, "
            "the number of values of a channel in a batch, or leave count out"
        )
    values = float(np.max(_entries.as_array("count", counts["count"])))
    return np.asarray(round(values / values_per_channel), np.int64)


def _check_matched(
    names: Mapping[str, str],
    normalizations: Sequence[str],
    match: Callable[[str, Mapping[str, str]], str | None],
    others: Mapping[str, Mapping[str, Any]],
) -> None:
    """Check that every pattern matches a normalization; messages list the `others` without any."""
    for pattern, template in names.items():
        if not any(match(name, {pattern: template}) is not None for name in normalizations):
            raise ValueError(
                f"no normalization matches {pattern!r} (ours: {template!r}); there are "
                + _entries.listed(normalizations, others)
            )


def _put(tree: dict[str, Any], path: str, arrays: Arrays) -> None:
    """Put the arrays into nested dicts at the path, if there are any."""
    if not arrays:
        return
    node = tree
    for key in path.split("/"):
        node = node.setdefault(key, {})
    if not node.keys().isdisjoint(arrays):
        raise ValueError(f"two layers have the path {path!r}; give them different paths")
    node.update(arrays)


def _normalizations(tree: Any, path: tuple[str, ...] = ()) -> dict[str, Mapping[str, Any]]:
    """The dicts in the tree that have only entries of normalizations, by path."""
    if not isinstance(tree, Mapping):
        return {}
    ours = {*_entries.PARAMS, *_entries.STATS, *_entries.COUNTS, _entries.MARK}
    if tree and set(tree) <= ours:
        return {"/".join(path): tree}
    found: dict[str, Mapping[str, Any]] = {}
    for key, node in tree.items():
        found |= _normalizations(node, (*path, str(key)))
    return found
