"""Operands of one primitive under `shard_map`, where it checks over which axes values vary."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def alike(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The operands, all marked as varying over whatever any of them varies over."""
    varying = [_varying(operand) for operand in operands]
    every: frozenset[str] = frozenset().union(*varying)
    return [
        jax.lax.pcast(operand, tuple(every - own), to="varying") if every - own else operand
        for operand, own in zip(operands, varying, strict=True)
    ]


def _varying(operand: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(operand).manual_axis_type.varying)
