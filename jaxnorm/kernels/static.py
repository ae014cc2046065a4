"""Static arguments that hold arrays: the arrays become operands, and the rest is hashable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Static(NamedTuple):
    """A tree of values without its arrays (hashable).

    Attributes:
        tree: its structure.
        leaves: its leaves, None in the place of an array.
    """

    tree: Any
    leaves: tuple[Any, ...]

    @property
    def number(self) -> int:
        """The number of arrays."""
        return sum(leaf is None for leaf in self.leaves)

    def joined(self, arrays: Sequence[jax.Array]) -> Any:
        """The tree with the arrays in their places."""
        rest = iter(arrays)
        return self.tree.unflatten(next(rest) if leaf is None else leaf for leaf in self.leaves)


def split_arrays(value: Any) -> tuple[Static, list[jax.Array]]:
    """The hashable part of a tree, and its arrays."""
    leaves, tree = jax.tree.flatten(value)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
    static = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    return Static(tree, static), arrays
