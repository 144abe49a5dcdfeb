"""Growmaps as files: the published six-key ``.pt`` layout and a JSON form of our own.

The six keys of ``.pt`` describe one shape in several ways. All are written. On reading, all are compared with the
shape, so other readers understand an accepted file as we do.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json
from seedmp.reporting.output import check_output
from seedmp.token_tree.growmap import MAX_GROWMAP_SIZE, Growmap

if TYPE_CHECKING:
    import torch

MAX_FILE_BYTES = 64 * 2**20
JSON_VERSION = 1
_KEYS = ("roots", "branches", "Successors", "mask", "depth", "size")


def load_growmap(path: str | Path) -> Growmap:
    """Read a growmap; no code of the file is run.

    Args:
        path: ``.json`` is our form, everything else the published one.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        return from_json(_read_text(path)) if path.suffix == ".json" else from_six_keys(load_tensors(path))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error


def parse_growmap(value: object) -> Growmap:
    """The growmap that a user named.

    Args:
        value: a Growmap, the path of a file, "KxD" for K chains of D tokens, or child counts: of all nodes
            in breadth-first order as (2, 1, 0, 0), or by level as ((2,), (1, 0), (0,)).

    Raises:
        ConfigError: it is none of these, or the file is no growmap.
    """
    if isinstance(value, Growmap):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", value.strip())):
        return Growmap.chains(int(match[1]), int(match[2]))
    if isinstance(value, str | os.PathLike):
        return load_growmap(Path(value))
    if isinstance(value, tuple | list) and value:
        if all(isinstance(level, tuple | list) for level in value):
            return Growmap.from_children_counts(value)
        return Growmap(tuple(value))
    raise ConfigError(
        'must be the path of a .pt or .json file, "KxD" for K chains of D tokens, or child counts such as (2, 1, 0, 0)'
    )


def save_growmap(growmap: Growmap, path: str | Path) -> None:
    """Write a growmap, as ``.json`` or ``.pt`` by the suffix.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, (".pt", ".json"))
    if path.suffix == ".json":
        data = to_json(growmap).encode()
    else:
        import torch

        buffer = io.BytesIO()
        torch.save(to_six_keys(growmap), buffer)
        data = buffer.getvalue()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


# --- our JSON ----------------------------------------------------------------------------------------


def to_json(growmap: Growmap) -> str:
    """``{"seedmp_growmap": 1, "num_children": [[2], [1, 0], [0]]}``: child counts, one list a level."""
    return json.dumps({"seedmp_growmap": JSON_VERSION, "num_children": growmap.branches}) + "\n"


def from_json(text: str) -> Growmap:
    """The reverse of ``to_json``; one flat list of counts in breadth-first order is taken too.

    Raises:
        ConfigError: says what is wrong.
    """
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"no growmap: not JSON ({error})") from None
    if not isinstance(data, dict) or set(data) != {"seedmp_growmap", "num_children"}:
        raise ConfigError('no growmap: must be an object with the keys "seedmp_growmap" and "num_children"')
    version, counts = data["seedmp_growmap"], data["num_children"]
    if version != JSON_VERSION or isinstance(version, bool):
        raise ConfigError(f"growmap of version {version!r}: this seedmp reads version {JSON_VERSION}")
    if not isinstance(counts, list):
        raise ConfigError("num_children is no list")
    if not any(isinstance(level, list) for level in counts):
        return Growmap(tuple(counts))
    _check_lists("num_children", counts, len(counts))
    growmap = Growmap.from_children_counts(counts)
    _compare("num_children", counts, growmap.branches)
    return growmap


def _read_text(path: Path) -> str:
    _check_size(path)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


# --- the published .pt -----------------------------------------------------------------------------


def to_six_keys(growmap: Growmap) -> dict[str, Any]:
    """The dict that published ``.pt`` files hold, with the same python and tensor types."""
    import torch

    mask = torch.eye(growmap.size, dtype=torch.int64)
    for node_id, children in enumerate(growmap.children):
        for child in children:
            mask[child] += mask[node_id]
    return {
        "roots": [list(level) for level in growmap.levels],
        "branches": [list(level) for level in growmap.branches],
        "Successors": [list(children) for children in growmap.children],
        "mask": mask,
        "depth": torch.tensor(growmap.depths, dtype=torch.int64),
        "size": growmap.size,
    }


def from_six_keys(data: object) -> Growmap:
    """Check the six keys, one by one and against each other.

    Args:
        data: dict of roots: list of node ids by level; branches: child counts, same layout;
            Successors: [size] lists of child ids; mask: [size, size] int64, 1 where the column is the
            row or an ancestor of it; depth: [size] int64; size: int, the root included.

    Raises:
        ConfigError: says which key is wrong and where.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"no growmap: holds a {type(data).__name__}, not a dict with the keys {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in data]
    unknown = [key for key in data if key not in _KEYS]
    if missing or unknown:
        wrong = ([f"lacks {', '.join(missing)}"] if missing else []) + ([f"has {unknown[:6]!r}"] if unknown else [])
        raise ConfigError(f"no growmap: {' and '.join(wrong)}; the keys are {', '.join(_KEYS)}")
    size = data["size"]
    if type(size) is not int or not 1 <= size <= MAX_GROWMAP_SIZE:
        raise ConfigError(f"size {size!r}: must be a whole number from 1 to {MAX_GROWMAP_SIZE}")
    successors = data["Successors"]
    _check_lists("Successors", successors, size)
    if len(successors) != size:
        raise ConfigError(f"Successors has {len(successors)} entries, but size is {size}")
    growmap = Growmap(tuple(map(len, successors)))
    for key in ("roots", "branches"):
        _check_lists(key, data[key], size)
    _check_tensor("mask", data["mask"], (size, size))
    _check_tensor("depth", data["depth"], (size,))
    _compare("Successors", successors, growmap.children)
    _compare("roots", data["roots"], growmap.levels)
    _compare("branches", data["branches"], growmap.branches)
    expected = to_six_keys(growmap)
    for key in ("mask", "depth"):
        different = (data[key] != expected[key]).nonzero()
        if len(different):
            at = different[0].tolist()
            found, due = data[key][tuple(at)].item(), expected[key][tuple(at)].item()
            raise ConfigError(f"{key}{at} is {found}, but {due} by Successors")
    return growmap


def load_tensors(path: Path) -> object:
    """What a ``.pt`` file holds: containers, numbers and tensors only, on the CPU.

    Raises:
        ConfigError: missing, too large, damaged, or with anything else in it.
    """
    import torch

    _check_size(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > MAX_FILE_BYTES:  # a small file may be packed from a huge one
                raise ConfigError(f"{path}: unpacks to {unpacked} bytes, more than {MAX_FILE_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data: object = torch.load(path, weights_only=True, map_location="cpu")
            return data
    except ConfigError:
        raise
    except Exception as error:  # damaged bytes raise anything: index, key, struct, unpickling, zip errors
        lines = str(error).strip().splitlines()
        reason = next((line for line in lines if "Unsupported" in line or "not an allowed" in line), "")
        reason = reason or (lines[0] if lines else type(error).__name__)
        raise ConfigError(f"{path}: damaged, or no file of tensors and plain numbers: {reason[:300]}") from None


def _check_size(path: Path) -> None:
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if size_bytes > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: {size_bytes} bytes, more than the {MAX_FILE_BYTES} that a growmap may have")


def _check_lists(key: str, value: object, max_len: int) -> None:
    """Check type and size of a list of lists of numbers. Their values are compared later."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise ConfigError(f"{key} is no list of lists")
    if len(value) > max_len or sum(map(len, value)) > MAX_GROWMAP_SIZE:
        raise ConfigError(f"{key} has more entries than there are nodes")
    if any(type(item) is not int for row in value for item in row):
        raise ConfigError(f"{key} has entries that are no whole numbers")


def _check_tensor(key: str, value: object, shape: tuple[int, ...]) -> None:
    """Check a tensor before it is used: a damaged file may claim any shape."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ConfigError(f"{key} is a {type(value).__name__}, not a tensor")
    if value.layout is not torch.strided or value.dtype is not torch.int64 or value.shape != shape:
        raise ConfigError(f"{key} is {_describe(value)}: must be {list(shape)} int64")


def _describe(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _compare(key: str, found: list[list[int]], expected: tuple[tuple[int, ...], ...]) -> None:
    for i, due in enumerate(expected):
        if i >= len(found) or tuple(found[i]) != due:
            has = f"is {_short(found[i])}" if i < len(found) else "is missing"
            raise ConfigError(f"{key}[{i}] {has}: must be {_short(due)} (breadth-first order, children in a row)")
    if len(found) > len(expected):
        raise ConfigError(f"{key} has {len(found)} entries, but the tree has {len(expected)}")


def _short(numbers: list[int] | tuple[int, ...]) -> str:
    return str(list(numbers[:12]))[:-1] + (", ...]" if len(numbers) > 12 else "]")
