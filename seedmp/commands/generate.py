"""The command ``seedmp generate``: continue a prompt."""

from __future__ import annotations

import argparse
import io
import sys

from seedmp.commands.arguments import add_engine, engine_settings
from seedmp.engine import Engine
from seedmp.errors import RejectedError
from seedmp.sampling import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp generate``."""
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from standard input")
    add_engine(parser, k_config="1,1,1", num_drafts=1)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, help="repeats a sampled text")
    parser.add_argument("--n", type=int, default=1, help="continuations, one after another (default %(default)s)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")


def run(args: argparse.Namespace) -> int:
    """Print each continuation as it comes."""
    params = SamplingParams(
        temperature=args.temperature, max_tokens=args.max_tokens, stop=tuple(args.stop), seed=args.seed, n=args.n
    )
    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    with Engine(**engine_settings(args)) as engine:
        handles = engine.submit_all(prompt, params)
        for number, handle in enumerate(handles, start=1):
            if len(handles) > 1:
                print(f"--- {number} of {len(handles)} ---")
            for chunk in handle:
                print(chunk.text if engine.tokenizer is not None else f"{chunk.token_ids} ", end="", flush=True)
            print()
    return 0


def _read_stdin() -> str:
    if sys.stdin is None:
        raise RejectedError("prompt -: standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # in the C locale Python lets everything through
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RejectedError(f"standard input must be valid {error.encoding}: byte {error.start} is not") from None
