"""Arguments that several commands have: the settings of an engine, lists with commas, options as a dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from seedmp.config import DTYPES, POLICIES, Schedule
from seedmp.errors import ConfigError
from seedmp.methods.registry import METHODS

T = TypeVar("T")


def add_engine(parser: argparse.ArgumentParser, *, k_config: str, num_drafts: int) -> None:
    """Add the arguments that describe an engine; ``engine_settings`` reads them."""
    parser.add_argument("--target", metavar="MODEL", help="folder or hub id (default: the bundled pair)")
    parser.add_argument(
        "--draft", metavar="MODEL", help="folder or hub id of a model with the same vocabulary; eagle: of a head"
    )
    methods = f"{', '.join(METHODS.names())}, or module:Class of your own (default %(default)s)"
    parser.add_argument("--method", metavar="NAME", default="mcsd", help=methods)
    parser.add_argument(
        "--k-config", default=k_config, metavar="K,K,..", help="children, by level (default %(default)s)"
    )
    parser.add_argument("--growmap", metavar="MAP", help="static tree: a .pt or .json file, or KxD chains")
    parser.add_argument("--nodes", type=int, metavar="N", help="draft tokens in a tree, for opt-tree, eagle and ngram")
    parser.add_argument("--max-depth", type=int, metavar="N", help="draft tokens on a path, for the same")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="stop at layers that add no more tokens, for opt-tree and eagle"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="nodes of a layer that go on, for eagle; 1 is a chain")
    parser.add_argument(
        "--num-drafts", type=int, default=num_drafts, metavar="N", help="draft processes (default %(default)s)"
    )
    parser.add_argument("--schedule", choices=[s.value for s in Schedule], default="scheduled")
    policies = f"{', '.join(POLICIES.names())}, or module:Class of your own (default %(default)s)"
    parser.add_argument("--policy", metavar="NAME", default="fcfs-batch", help=policies)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What ``Engine`` takes, by name.

    Raises:
        ConfigError: ``--k-config`` is not whole numbers with commas.
    """
    names = ("target", "draft", "method", "num_drafts", "schedule", "policy", "dtype")
    settings = {name: getattr(args, name) for name in names} | {"k_config": _k_config(args.k_config)}
    optional = ("growmap", "nodes", "max_depth", "threshold", "top_k")
    return settings | {name: value for name in optional if (value := getattr(args, name)) is not None}


def _k_config(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--k-config {text!r}: must be whole numbers with commas, such as 2,2,1") from None


def read_list(name: str, text: str, read: Callable[[str], T]) -> list[T]:
    """Values with commas between them.

    Raises:
        ConfigError: one is not of this kind.
    """
    try:
        return [read(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{name} {text!r}: not understood, values with commas between them") from None


def options_from(kind: Callable[..., T], args: argparse.Namespace, **given: Any) -> T:
    """An option dataclass: each field that is not ``given`` is the argument of its name, where there is one."""
    names = {field.name for field in fields(kind)} - set(given)  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(args).items() if name in names}, **given)
