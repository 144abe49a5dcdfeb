"""Question: what does making the text of a stream cost, and how does that grow with the stream?

``python -m seedmp.benchmarks.questions.streaming --json FILE``

A stream of N tokens that are committed a few at a time, as rounds commit them; no model runs. Two ways to find the
new text at each commit: decode all tokens again (what the engine did before), and decode each token once
(``seedmp.client.detokenize``). Both streams must give the text of all tokens (checked). Cost = time in the thread that
serves every request, for the whole stream, median over repeats that are interleaved. Growth = exponent b of the fit
cost ~ N^b: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from seedmp.client.detokenize import Detokenizer
from seedmp.errors import ConfigError, SeedmpError
from seedmp.measuring.node import describe_node
from seedmp.models import pair
from seedmp.models.load import load_tokenizer
from seedmp.tasks.gsm8k import load_gsm8k

SIZES = (500, 1000, 2000, 4000)
PER_COMMIT = 3  # about what a round accepts


def stream_anew(tokenizer: Any, token_ids: Sequence[int], per_commit: int) -> str:
    """Decode all tokens at each commit, and take what is new."""
    pieces, num_chars = [], 0
    for end in range(per_commit, len(token_ids) + per_commit, per_commit):
        text = str(tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True)).rstrip("\ufffd")
        pieces.append(text[num_chars:])
        num_chars = max(num_chars, len(text))
    return "".join(pieces)


def stream_on(tokenizer: Any, token_ids: Sequence[int], per_commit: int) -> str:
    """Decode the new tokens at each commit, and all of them once at the end."""
    detokenizer = Detokenizer(tokenizer)
    stream, known = detokenizer.stream(), list[int]()
    pieces = []
    for at in range(0, len(token_ids), per_commit):
        known += token_ids[at : at + per_commit]
        pieces.append(stream.read(known))
    return "".join(pieces) + detokenizer.decode(known)[stream.num_chars :]


WAYS: dict[str, Callable[[Any, Sequence[int], int], str]] = {"all tokens": stream_anew, "new tokens": stream_on}


def growth(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Exponent b of the least-squares fit cost ~ size^b."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(pair.TARGET), help="whose tokenizer (default: the bundled one)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--per-commit", type=int, default=PER_COMMIT, help="tokens (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="short streams, once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    sizes, num_repeats = (SIZES, args.repeats) if not args.smoke else ((50, 100), 1)
    tokenizer = load_tokenizer(args.target)
    if tokenizer is None:
        raise ConfigError(f"{args.target!r} has no tokenizer: name a target that has one")
    words = " ".join(problem.question for problem in load_gsm8k())
    ids = tokenizer(words, add_special_tokens=False).input_ids
    ids = (ids * (1 + max(sizes) // len(ids)))[: max(sizes)]
    repeats: dict[str, list[list[float]]] = {way: [] for way in WAYS}  # [repeats][sizes] seconds
    is_same = True
    for repeat in range(num_repeats + 1):  # the first warms up
        for way in list(WAYS) if repeat % 2 else list(WAYS)[::-1]:
            costs = []
            for size in sizes:
                start_s = time.perf_counter()
                text = WAYS[way](tokenizer, ids[:size], args.per_commit)
                costs.append(time.perf_counter() - start_s)
                is_same &= text == tokenizer.decode(ids[:size], skip_special_tokens=True)
            if repeat:
                repeats[way].append(costs)
    rows: list[dict[str, Any]] = []
    table = Table("decodes at each commit", *(f"{size} tokens, ms" for size in sizes), "growth N^b")
    for way, done in repeats.items():
        medians = [statistics.median(column) for column in zip(*done, strict=True)]
        rows.append({"name": way, "growth": growth(sizes, medians), "cost_s": medians, "repeats_s": done})
        table.add_row(way, *(f"{1e3 * cost:.1f}" for cost in medians), f"{rows[-1]['growth']:.2f}")
    Console().print(table)
    print(f"same texts: {is_same}")
    if args.json is not None:
        plain = {"rows": rows, "sizes": sizes, "per_commit": args.per_commit, "same_texts": is_same}
        plain |= {"tokenizer": Path(args.target).name, "node": describe_node()}
        args.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0 if is_same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SeedmpError as error:
        sys.exit(f"streaming: {error}")
