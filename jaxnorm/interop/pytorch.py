"""PyTorch: state dicts of its normalizations, one layer or a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnorm.interop import entries as _entries
from jaxnorm.interop import patterns as _patterns
from jaxnorm.interop.entries import Array, Arrays, Converted

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
    """The parameters, statistics and options of one normalization of PyTorch.

    `weight` is our scale, `running_mean` and `running_var` are our mean and var as they stand, so
    that evaluation gives the same; `num_batches_tracked` is our steps. `gamma` and `beta`, as in
    checkpoints of early BERTs, are read as `weight` and `bias`.

    Args:
        state_dict: as of a module or of a safetensors file: NumPy arrays, or what becomes one
            (tensors on the CPU).
        prefix: of the layer, as in "layer1.0.bn1"; "" for a state dict of the layer itself.
        momentum: of the PyTorch module, which the state dict does not hold: the weight of the new
            value, so ours is one minus it. None is PyTorch's cumulative average, which counts
            batches where ours counts values: it needs `values_per_channel`, and count is their
            product.
        epsilon: of the PyTorch module. By default PyTorch's own default, 1e-5; of a weight alone,
            which may be that of an RMSNorm (the machine's epsilon) or of a LayerNorm without bias,
            none is given.
        values_per_channel: n, the values of a channel in a training batch (examples times
            positions): makes the variance the biased one, var * (n - 1) / n, in which our training
            goes on. Evaluation then differs from PyTorch's by that factor.

    Returns:
        params {"scale", "bias"}, those that there are, of the shape [C] (LayerNorm and RMSNorm:
        `normalized_shape`); stats {"mean", "var", "steps"}, with "count" if `momentum` is None, or
        {} for LayerNorm, GroupNorm, RMSNorm and InstanceNorm without running statistics; options
        {"momentum", "epsilon"} as ours. Arrays are copies in the dtype that they
        had, statistics in float32 at least.

    Raises:
        TypeError: what does not become a NumPy array (the message says how it would), or holds no
            floating-point numbers.
        ValueError: a prefix that is not a normalization's (the message lists those that are), a
            missing entry, `gamma` beside `weight`, shapes that differ, a momentum outside [0, 1], a
            `values_per_channel` below 2.

    Conventions:
        PyTorch normalizes by the biased variance and keeps the unbiased one; it evaluates an
        InstanceNorm with running statistics as a BatchNorm, and so does `jaxnorm.batch_norm`.

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
    """The state dict of one normalization of PyTorch: what `from_pytorch` reads, bit for bit.

    Args:
        params: {"scale", "bias"}, those that there are; NumPy or jax arrays.
        stats: {"mean", "var"}, {} or None. steps become `num_batches_tracked`, int64; where there
            are none, their place is left out, which `load_state_dict` allows, and so is the mark of
            `jaxnorm.freeze_stats`.
        prefix: of the layer in the state dict.
        values_per_channel: n, of a training batch: makes the variance the unbiased one,
            var * n / (n - 1), in which PyTorch's training goes on, and a count of values one of
            batches.

    Returns:
        {"prefix.weight": array, ...}; for tensors, `torch.from_numpy` each.

    Raises:
        TypeError: what does not become a NumPy array of floating-point numbers.
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
    """The normalizations of a whole PyTorch model as the variables of a Linen model.

    Every prefix that a pattern matches and whose entries are those of a normalization (vectors
    under its names) is converted as by `from_pytorch`; convolutions and other layers under the same
    pattern are not.

    Args:
        state_dict: of the model.
        names: patterns of prefixes to templates of our paths, as {"layer*.*.bn?":
            "layer{}_{}/norm_{}"}. `*` stands for one or more characters and `?` for one, of any but
            "." and "/"; each fills its place {} in the template, in order. The first that matches
            is taken.

    Returns:
        {"params", "batch_stats"}, nested dicts as Linen has them, and the rest: every entry that
        was not converted, as it came, `num_batches_tracked` too (a Linen BatchNorm has no place for
        it). The state dict again is `{**rest, **to_pytorch_all(variables, names)}`, with `weight`
        and `bias` for `gamma` and `beta`.

    Raises:
        TypeError, ValueError: those of `from_pytorch`; a pattern that no normalization matches (the
            message lists the prefixes that there are), whose wildcards are not as many as its
            template's places, or that cannot be undone; two prefixes with one path.

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
    there = _entries.normalizations(state_dict, _ENTRIES, ".")
    paths = {prefix: _patterns.ours(prefix, names) for prefix in there}
    found = {prefix: path for prefix, path in paths.items() if path is not None}
    _check_matched(names, there, _patterns.ours, _entries.groups(state_dict, "."))
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
    """The entries of a PyTorch model's normalizations: the way back of `from_pytorch_all`.

    Args:
        variables: {"params", "batch_stats"} of a Linen model, nested dicts.
        names: as for `from_pytorch_all`.

    Returns:
        {"prefix.weight": array, ...} of the parts of the model whose path a template matches.

    Raises:
        ValueError: a template that no part matches (the message lists the paths that there are),
            and the errors of `to_pytorch`.

    Example:
        >>> import numpy as np, jaxnorm as jn
        >>> variables = {"params": {"block_1": {"norm": {"scale": np.ones(2)}}}}
        >>> jn.interop.to_pytorch_all(variables, {"block*.norm": "block_{}/norm"})
        {'block1.norm.weight': array([1., 1.])}
    """
    _patterns.check_names(names)
    _entries.check_mapping("the variables", variables)
    params = _parts(variables.get("params", {}))
    stats = _parts(variables.get("batch_stats", {}))
    there = [*params, *(path for path in stats if path not in params)]
    prefixes = {path: _patterns.theirs(path, names) for path in there}
    found = {path: prefix for path, prefix in prefixes.items() if prefix is not None}
    _check_matched(names, there, _patterns.theirs, variables)
    state_dict: Arrays = {}
    for path, prefix in found.items():
        state_dict |= to_pytorch(params.get(path, {}), stats.get(path, {}), prefix)
    return state_dict


def _check_values(values_per_channel: int | None) -> None:
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
    """The entries of a layer, the old names among them as today's."""
    twice = [f"{old} and {new}" for old, new in _OLD.items() if {old, new} <= own.keys()]
    if twice:
        raise ValueError(
            f"the layer at {prefix!r} has both {' and both '.join(twice)}, two names of one array; "
            "leave one out"
        )
    return {_OLD.get(name, name): value for name, value in own.items()}


def _count(prefix: str, stats: Arrays, values_per_channel: int | None) -> Array:
    """The values seen, where PyTorch counts batches."""
    if values_per_channel is None or "steps" not in stats:
        raise ValueError(
            f"momentum=None at {prefix!r} is PyTorch's cumulative average, which counts batches "
            "where ours counts values: give values_per_channel, the values of a channel in a "
            f"batch, and a state dict with {_BATCHES}; to evaluate only, leave momentum out"
        )
    return np.asarray(int(stats["steps"]) * values_per_channel, np.float32)


def _batches(counts: Mapping[str, Any], values_per_channel: int | None) -> Array:
    """`num_batches_tracked`, from the steps or the values seen."""
    if "steps" in counts:
        return _entries.as_counter("steps", counts["steps"], np.int64)
    if values_per_channel is None:
        raise ValueError(
            "stats have a count of values, and PyTorch counts batches: give values_per_channel, "
            "the values of a channel in a batch, or leave count out"
        )
    values = float(np.max(_entries.as_array("count", counts["count"])))
    return np.asarray(round(values / values_per_channel), np.int64)


def _check_matched(
    names: Mapping[str, str],
    there: Sequence[str],
    match: Callable[[str, Mapping[str, str]], str | None],
    others: Mapping[str, Mapping[str, Any]],
) -> None:
    """Every pattern has a normalization; `others` is what there is where there is none."""
    for pattern, template in names.items():
        if not any(match(name, {pattern: template}) is not None for name in there):
            raise ValueError(
                f"no normalization matches {pattern!r} (ours: {template!r}); there are "
                + _entries.there(there, others)
            )


def _put(tree: dict[str, Any], path: str, arrays: Arrays) -> None:
    """The arrays into nested dicts, at the path; nothing where there are none."""
    if not arrays:
        return
    node = tree
    for key in path.split("/"):
        node = node.setdefault(key, {})
    if not node.keys().isdisjoint(arrays):
        raise ValueError(f"two layers become {path!r}; give them paths of their own")
    node.update(arrays)


def _parts(tree: Any, path: tuple[str, ...] = ()) -> dict[str, Mapping[str, Any]]:
    """The dicts in the tree that a normalization could have made, by path."""
    if not isinstance(tree, Mapping):
        return {}
    ours = {*_entries.PARAMS, *_entries.STATS, *_entries.COUNTS, _entries.MARK}
    if tree and set(tree) <= ours:
        return {"/".join(path): tree}
    parts: dict[str, Mapping[str, Any]] = {}
    for key, node in tree.items():
        parts |= _parts(node, (*path, str(key)))
    return parts
