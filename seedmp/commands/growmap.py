"""The command ``seedmp growmap``: show, make and convert the shapes of static token trees."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json
from seedmp.reporting.output import check_output
from seedmp.token_tree.growmap import MAX_GROWMAP_SIZE
from seedmp.token_tree.growmap_draw import draw_svg, draw_text
from seedmp.token_tree.growmap_file import MAX_FILE_BYTES, load_growmap, load_tensors, save_growmap
from seedmp.token_tree.sequoia import MAX_LEVELS, BudgetChoice, choose_by_budget, parse_acceptance, search_trees

MAP_SUFFIXES = (".pt", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp growmap``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="print a growmap as a tree")
    show.add_argument("file", type=Path, metavar="FILE", help=".pt as published, or our .json")
    show.add_argument("--svg", type=Path, metavar="OUT", help="draw it here")
    show.set_defaults(action=_show)
    make = commands.add_parser("make", help="search the best tree for an acceptance vector and measured times")
    make.add_argument("--config", type=Path, required=True, metavar="FILE", help="JSON as Sequoia's tree search has it")
    make.add_argument("--out", type=Path, required=True, metavar="MAP", help="the growmap, .pt or .json")
    make.add_argument("--json", type=Path, metavar="FILE", help="write size, levels and predictions here")
    make.set_defaults(action=_make)
    convert = commands.add_parser("convert", help="from .pt to .json or back")
    convert.add_argument("source", type=Path, metavar="IN")
    convert.add_argument("out", type=Path, metavar="OUT")
    convert.set_defaults(action=_convert)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    status: int = args.action(args)
    return status


# --- show and convert ------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    if args.svg is not None:
        check_output(args.svg)
    growmap = load_growmap(args.file)
    print(draw_text(growmap), end="")
    if args.svg is not None:
        _write(args.svg, draw_svg(growmap))
    return 0


def _convert(args: argparse.Namespace) -> int:
    check_output(args.out, MAP_SUFFIXES)
    save_growmap(load_growmap(args.source), args.out)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


# --- make ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchConfig:
    """A tree search as the published configuration files describe it.

    Args:
        acceptance: [K, B + 1] of ``parse_acceptance``.
        max_depth: most levels, the root's included.
        draft_time: of one draft forward, charged once a level, in the unit of ``target_times``.
        budgets: sizes to choose from, the root included.
        target_times: of a target forward of each budget; the first is plain decoding's.
    """

    acceptance: np.ndarray
    max_depth: int
    draft_time: float
    budgets: tuple[int, ...]
    target_times: tuple[float, ...]


def read_config(path: Path) -> SearchConfig:
    """Read and check a configuration in the layout of Sequoia's tree search.

    Keys: acceptance_rate_vector (a file, relative to the configuration or else to the current folder),
    max_depth, max_budget, draft_time, valid_budget, target_time. Of our own, ``vector_ends_with_none``
    (true or false) says whether the vector's last entry is P(none); without it the sum decides
    (``parse_acceptance``). Other keys, such as dst, are not read.

    Raises:
        ConfigError: names the file, the key and what is allowed.
    """
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must hold an object")
    needed = ("acceptance_rate_vector", "max_depth", "max_budget", "draft_time", "valid_budget", "target_time")
    missing = [key for key in needed if key not in config]
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}")

    def whole(key: str, value: object, most: int) -> int:
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(f"{path}: {key} {value!r}: must be a whole number from 1 to {most}")
        return value

    def seconds(key: str, value: object, above_zero: bool) -> float:
        if not _is_number(value) or value < 0 or (above_zero and value == 0):
            raise ConfigError(f"{path}: {key} {value!r}: must be a number {'above 0' if above_zero else '>= 0'}")
        return float(value)

    def entries(key: str) -> list[Any]:
        if not isinstance(config[key], list) or not config[key]:
            raise ConfigError(f"{path}: {key} must be a list, not empty")
        values: list[Any] = config[key]
        return values

    max_depth = whole("max_depth", config["max_depth"], MAX_LEVELS)
    max_budget = whole("max_budget", config["max_budget"], sys.maxsize)
    largest = min(max_budget, MAX_GROWMAP_SIZE)
    budgets = tuple(whole("valid_budget", budget, largest) for budget in entries("valid_budget"))
    target_times = tuple(seconds("target_time", value, True) for value in entries("target_time"))
    if len(budgets) != len(target_times):
        raise ConfigError(f"{path}: {len(budgets)} entries of valid_budget, but {len(target_times)} of target_time")
    if len(set(budgets)) < len(budgets):
        raise ConfigError(f"{path}: valid_budget {list(budgets)} names a size twice")
    draft_time = seconds("draft_time", config["draft_time"], False)
    ends_with_none = config.get("vector_ends_with_none")
    if ends_with_none is not None and not isinstance(ends_with_none, bool):
        raise ConfigError(f"{path}: vector_ends_with_none {ends_with_none!r}: must be true or false")
    vector_name = config["acceptance_rate_vector"]
    if not isinstance(vector_name, str) or not vector_name:
        raise ConfigError(f"{path}: acceptance_rate_vector {vector_name!r}: must be the name of a file")
    acceptance = _read_acceptance(_find(vector_name, path), ends_with_none)
    return SearchConfig(acceptance, max_depth, draft_time, budgets, target_times)


def _find(name: str, config_path: Path) -> Path:
    """A file named in a configuration: beside it, or else in the current folder."""
    beside, here = config_path.parent / name, Path(name)
    for path in (beside, here):
        if path.is_file():
            return path
    where = f"neither {beside} nor {here} is a file" if beside != here else f"{here} is no file"
    raise ConfigError(f"{config_path}: acceptance_rate_vector: {where}")


def _read_acceptance(path: Path, ends_with_none: bool | None) -> np.ndarray:
    """An acceptance vector from a ``.json`` file (a list, or an object with "vector") or a tensor's ``.pt``."""
    if path.suffix == ".json":
        values = _read_json(path)
        if isinstance(values, dict):
            if "vector" not in values:
                raise ConfigError(f'{path}: an object without the key "vector"')
            values = values["vector"]
        rows = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
        if not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
            raise ConfigError(f"{path}: must be a list of numbers, or one list per depth")
    else:
        import torch

        tensor = load_tensors(path)
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise ConfigError(f"{path}: must hold a tensor of floats")
        if tensor.numel() > MAX_LEVELS * (MAX_GROWMAP_SIZE + 2):
            raise ConfigError(f"{path}: a tensor of shape {list(tensor.shape)} is no acceptance vector")
        values = tensor.double().tolist()
    return parse_acceptance(values, ends_with_none, str(path))


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # False for NaN; huge ints do not overflow


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None


def _make(args: argparse.Namespace) -> int:
    check_output(args.out, MAP_SUFFIXES)
    if args.json is not None:
        check_output(args.json)
        if args.json.resolve() == args.out.resolve():
            raise ConfigError(f"{args.out}: --out and --json are the same file")
    config = read_config(args.config)
    # Trees of max_budget are of no use beyond the largest valid one, nor levels beyond its nodes.
    max_size = max(config.budgets)
    table = search_trees(config.acceptance, max_size, min(config.max_depth, max_size))
    choice = choose_by_budget(table, config.draft_time, config.budgets, config.target_times)
    save_growmap(choice.growmap, args.out)
    if args.json is not None:
        _write(args.json, json.dumps(_summary(choice), indent=1) + "\n")
    print(f"{'nodes':>5} {'levels':>6} {'tokens':>8} {'cost':>10} {'speedup':>8}   (best depth of each size)")
    for budget, target_time in zip(config.budgets, config.target_times, strict=True):
        if not np.isfinite(table.expected[budget]).any():
            print(f"{budget:5}   none so small in depth and width")
            continue
        row = choose_by_budget(table, config.draft_time, (budget,), (target_time,))
        speedup = config.target_times[0] / row.cost
        mark = "  <- best" if row.growmap == choice.growmap else ""
        levels = len(row.growmap.levels)
        print(f"{budget:5} {levels:6} {row.expected_tokens:8.4f} {row.cost:10.4f} {speedup:7.3f}x{mark}")
    if choice.speedup <= 1:
        print("none is faster than plain decoding: speculation does not pay with these times")
    print()
    print(draw_text(choice.growmap), end="")
    return 0


def _summary(choice: BudgetChoice) -> dict[str, float]:
    return {
        "size": choice.growmap.size,
        "levels": len(choice.growmap.levels),
        "expected_tokens": choice.expected_tokens,
        "cost": choice.cost,
        "speedup": choice.speedup,
    }
