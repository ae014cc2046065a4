"""Operands of one primitive under a `shard_map` that checks varying axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def match_varying(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """Mark all operands as varying over every axis over which one of them varies."""
    varying = [_varying(operand) for operand in operands]
    every: frozenset[str] = frozenset().union(*varying)
    return [
        jax.lax.pcast(operand, tuple(every - own), to="varying") if every - own else operand
        for operand, own in zip(operands, varying, strict=True)
    ]


def _varying(operand: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(operand).manual_axis_type.varying)
