"""k-configurations: the shape of a static token tree, given as children per node and level."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from seedmp.checks import shown
from seedmp.errors import ConfigError

MAX_TREE_NODES = 512
_ALLOWED = f'must be whole numbers >= 1, as in (2, 2, 1) or "2,2,1", for at most {MAX_TREE_NODES} nodes in all'


def parse_k_config(value: object) -> tuple[int, ...]:
    """The tree shape that a user wrote: every node of level i - 1 gets k_i children.

    Args:
        value: a tuple or list of ints, or a string such as "2,2,1".

    Returns:
        [L] children per node of each level, every one >= 1.

    Raises:
        ConfigError: not of that form, empty, or more than MAX_TREE_NODES nodes.
    """
    items: Iterable[object]
    try:
        if isinstance(value, str):
            items = map(int, value.strip().strip("()[]").rstrip(", ").split(","))
        elif isinstance(value, tuple | list) and not any(isinstance(item, bool) for item in value):
            items = value
        else:
            raise TypeError
        k_config = tuple(map(operator.index, items))
    except (TypeError, ValueError):
        raise ConfigError(f"k_config={shown(value)}: {_ALLOWED}") from None
    if not k_config or min(k_config) < 1:
        raise ConfigError(f"k_config={shown(value)}: {_ALLOWED}")
    if len(k_config) > MAX_TREE_NODES or num_nodes(k_config) > MAX_TREE_NODES:
        raise ConfigError(f"k_config={shown(value)}: the tree has too many nodes; {_ALLOWED}")
    return k_config


def num_nodes(k_config: tuple[int, ...]) -> int:
    """Draft tokens in the tree: 10 for (2, 2, 1)."""
    return sum(_level_sizes(k_config))


def num_drafted(k_config: tuple[int, ...]) -> int:
    """Nodes that the draft model runs forward, all but the last level: 6 for (2, 2, 1)."""
    return sum(_level_sizes(k_config)[:-1])


def _level_sizes(k_config: tuple[int, ...]) -> list[int]:
    sizes, size = [], 1
    for num_children in k_config:
        size *= num_children
        sizes.append(size)
    return sizes
