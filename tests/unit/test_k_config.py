"""The shape of static token trees: what is understood, what is refused."""

from __future__ import annotations

import pytest

from seedmp.errors import ConfigError
from seedmp.token_tree.k_config import MAX_TREE_NODES, num_drafted, num_nodes, parse_k_config


@pytest.mark.parametrize("value", [(2, 2, 1), [2, 2, 1], "2,2,1", " 2, 2, 1 ", "(2, 2, 1)"])
def test_every_way_to_write_it(value: object) -> None:
    assert parse_k_config(value) == (2, 2, 1)


@pytest.mark.parametrize(
    ("k_config", "nodes", "drafted"),
    [((1,), 1, 0), ((4,), 4, 0), ((1, 1, 1), 3, 2), ((2, 1), 4, 2), ((2, 2, 1), 10, 6), ((3, 2), 9, 3)],
)
def test_counts(k_config: tuple[int, ...], nodes: int, drafted: int) -> None:
    assert num_nodes(k_config) == nodes
    assert num_drafted(k_config) == drafted


@pytest.mark.parametrize(
    "value",
    [(), [], "", ",", "2,,1", "a", "2;2", (0,), (2, -1), (1.5,), ("2",), (True, 1), None, 3, {2: 1}, b"2,1"],
)
def test_refuses_with_the_value_and_what_is_allowed(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_k_config(value)
    assert repr(value) in str(caught.value)
    assert "whole numbers >= 1" in str(caught.value)


def test_node_limit_is_exact() -> None:
    assert parse_k_config((MAX_TREE_NODES,)) == (MAX_TREE_NODES,)
    assert parse_k_config((1,) * MAX_TREE_NODES) == (1,) * MAX_TREE_NODES
    for too_large in [(MAX_TREE_NODES + 1,), (1,) * (MAX_TREE_NODES + 1), (2,) * 9, (10**6,) * 50]:
        with pytest.raises(ConfigError, match=str(MAX_TREE_NODES)):
            parse_k_config(too_large)
