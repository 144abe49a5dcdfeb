"""Train the bundled pair: ``python -m recipes.pair --data DIR --out DIR --minutes M``.

Documents -> windows of tokens -> target -> draft -> evaluation -> the two folders to ship. Stages run
in this order, or alone with ``--stages``; one that was interrupted goes on from its checkpoint in OUT:

    data      tokenizer (or ``--tokenizer``), training windows, held-out windows
    target    cross entropy, ``--minutes``
    draft     cross entropy on the same windows, ``--draft-minutes``
    sample    texts that the target writes to prompts of the training data
    distil    the draft learns the target's law, on windows and on these texts, ``--distil-minutes``
    evaluate  losses, agreement of draft and target, quick solve rates
    export    target/ and draft/ in bfloat16, as transformers loads them

The C library gives big buffers back and faults them in again at every step; on Linux a third is gained by
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.pair import corpus
from recipes.pair.corpus import BOS, EOS, PAD, WINDOW, Encoder, Windows
from recipes.pair.evaluate import PairEvaluation, generate, report
from recipes.pair.llama import DRAFT, MAX_POSITIONS, TARGET, build
from recipes.pair.train import Plan, load_weights, train

STAGES = ("data", "target", "draft", "sample", "distil", "evaluate", "export")
NUM_SHARDS = 2
BATCH_SHARES = {"windows-0": 0.5, "windows-1": 0.25, "decisions": 0.25}
DISTIL_SHARES = {"own": 0.5, "texts": 0.25, "windows-1": 0.25}
DRAFT_ADAM_RATE = 4e-3
DISTIL_START_RATE = 0.8
# Texts sampled from the target for distillation: prompt kind -> (prompts, most new tokens).
OWN_TEXTS = {
    "gsm8k": (512, 150),
    "stories": (576, 200),
    "prose": (192, 160),
    "plans": (64, 170),
    "games": (256, 80),
}
SAMPLING_BATCH = 64
PROSE_PROMPT_TOKENS = 40


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are asked for."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    unknown = set(args.stages) - set(STAGES)
    if unknown:
        raise SystemExit(f"unknown stages: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    runs = {
        "data": make_data,
        "target": train_target,
        "draft": train_draft,
        "sample": sample_own_texts,
        "distil": distil_draft,
        "evaluate": evaluate,
        "export": export,
    }
    for stage in STAGES:
        if stage in args.stages:
            print(f"--- {stage}", flush=True)
            runs[stage](args)


def make_data(args: argparse.Namespace) -> None:
    """Write tokenizer.json, the training windows in shards, and a few held-out windows of each kind."""
    if args.tokenizer is not None:
        shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    else:
        corpus.train_tokenizer(args.data, args.seed).save(str(args.out / "tokenizer.json"))
    encode = Encoder(_tokenizer(args))
    for name, windows in corpus.held_out_windows(args.data, encode, args.held_out_windows).items():
        windows.save(args.out / f"held-{name}")
    per_shard = max(1, round(args.million_tokens * 1e6 / WINDOW / NUM_SHARDS))
    for number in range(NUM_SHARDS):
        documents = corpus.sources(args.data, args.seed + 1 + number)
        corpus.pack(documents, encode, corpus.MIXTURE, per_shard).save(args.out / f"windows-{number}")
    for number, (name, mixture) in enumerate({"decisions": corpus.DECISIONS, "texts": corpus.TEXTS}.items()):
        documents = corpus.sources(args.data, args.seed + 1 + NUM_SHARDS + number)
        corpus.pack(documents, encode, mixture, max(1, per_shard // 4)).save(args.out / name)


def train_target(args: argparse.Namespace) -> None:
    """Cross entropy from random weights, or from ``--init``."""
    start_from = None
    if args.init is not None:
        start_from = args.out / "init.pt"
        torch.save({"model": LlamaForCausalLM.from_pretrained(args.init).float().state_dict()}, start_from)
    train(
        _plan(
            args,
            shape=args.target_shape,
            checkpoint=args.out / "target.pt",
            minutes=args.minutes,
            num_windows=args.batch,
            start_from=start_from,
            start_rate=args.start_rate,
        )
    )


def train_draft(args: argparse.Namespace) -> None:
    """Cross entropy on the target's windows."""
    train(
        _plan(
            args,
            shape=args.draft_shape,
            checkpoint=args.out / "draft.pt",
            minutes=args.draft_minutes,
            num_windows=args.batch,
            adam_rate=DRAFT_ADAM_RATE,
            seed=args.seed + 100,
        )
    )


def sample_own_texts(args: argparse.Namespace) -> None:
    """Let the target continue prompts at temperature 1: a draft is judged on such texts."""
    target = build(args.target_shape).eval()
    load_weights(target, args.out / "target.pt")
    target = target.to(torch.bfloat16)
    tokenizer = _tokenizer(args)
    documents = corpus.sources(args.data, args.seed + 1000)
    chance = torch.Generator().manual_seed(args.seed)
    texts: list[list[int]] = []
    for name, (count, max_new) in OWN_TEXTS.items():
        prompts = [
            _prompt(name, tokenizer.encode(document.text, add_special_tokens=False).ids, tokenizer)
            for document in islice(documents[name], max(1, round(count * args.own_texts)))
        ]
        prompts.sort(key=len)
        num_new = 0
        for start in range(0, len(prompts), SAMPLING_BATCH):
            batch = prompts[start : start + SAMPLING_BATCH]
            for prompt, new in zip(batch, generate(target, batch, max_new, 1.0, lambda _: False, chance), strict=True):
                num_new += len(new)
                texts.append([*prompt, *new, *([EOS] if len(new) < max_new else [])])
        print(f"{name}: {num_new} tokens", flush=True)
    _pack_texts(texts, args.seed).save(args.out / "own")


def _prompt(name: str, tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """The beginning of a document, up to where a model is asked to go on."""
    if name == "prose":
        return [BOS, *tokens[:PROSE_PROMPT_TOKENS]]
    newline = tokenizer.token_to_id("Ċ")
    lines = {"gsm8k": 1, "stories": 1, "plans": 3, "games": 1}[name]
    ends = [idx for idx, token in enumerate(tokens) if token == newline]
    return [BOS, *tokens[: ends[lines - 1] + 1]]


def _pack_texts(texts: list[list[int]], seed: int) -> Windows:
    """First fit; texts longer than a window are cut."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    windows: list[list[int]] = []
    for idx in order:
        text = texts[idx][:WINDOW]
        home = next((some for some in windows[-16:] if len(some) + len(text) <= WINDOW), None)
        if home is None:
            windows.append(list(text))
        else:
            home += text
    tokens = np.full((len(windows), WINDOW), PAD, dtype=np.int16)
    for row, text in zip(tokens, windows, strict=True):
        row[: len(text)] = text
    return Windows(tokens, np.full(tokens.shape, corpus.WEIGHT_UNIT, dtype=np.uint8))


def distil_draft(args: argparse.Namespace) -> None:
    """The draft learns the target's law at every position of the windows and of the target's own texts."""
    train(
        _plan(
            args,
            shape=args.draft_shape,
            checkpoint=args.out / "distilled.pt",
            minutes=args.distil_minutes,
            num_windows=args.batch,
            windows=tuple(args.out / name for name in DISTIL_SHARES),
            shares=tuple(DISTIL_SHARES.values()),
            start_from=args.out / "draft.pt",
            teacher=(args.target_shape, args.out / "target.pt"),
            adam_rate=DRAFT_ADAM_RATE,
            start_rate=DISTIL_START_RATE,
            seed=args.seed + 200,
        )
    )


def evaluate(args: argparse.Namespace) -> None:
    """Print the figures and write them to figures.json; weights as shipped, computed in float32."""
    models: list[Any] = []
    for shape, file in ((args.target_shape, "target.pt"), (args.draft_shape, _draft_file(args))):
        if (args.out / file).exists():
            model = build(shape).eval()
            load_weights(model, args.out / file)
            models.append(model.to(torch.bfloat16).float())
    evaluation = PairEvaluation(models[0], models[1] if len(models) > 1 else None, _tokenizer(args), args.data)
    (args.out / "figures.json").write_text(json.dumps(report(evaluation, args.out, args.prompts), indent=1) + "\n")


def export(args: argparse.Namespace) -> None:
    """Write target/ and draft/ below OUT."""
    for name, shape, file in (
        ("target", args.target_shape, "target.pt"),
        ("draft", args.draft_shape, _draft_file(args)),
    ):
        model = build(shape)
        load_weights(model, args.out / file)
        model.config._attn_implementation = "sdpa"
        model.to(torch.bfloat16).save_pretrained(args.out / name)
        PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(args),
            bos_token="<bos>",
            eos_token="<eos>",
            pad_token="<pad>",
            model_max_length=MAX_POSITIONS,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(args.out / name)


def _plan(args: argparse.Namespace, **settings: Any) -> Plan:
    defaults: dict[str, Any] = {
        "windows": tuple(args.out / name for name in BATCH_SHARES),
        "shares": tuple(BATCH_SHARES.values()),
        "held_out": args.out,
        "num_ranks": args.processes,
        "seed": args.seed,
        "compiled": not args.no_compile,
    }
    return Plan(**{**defaults, **settings})


def _tokenizer(args: argparse.Namespace) -> Tokenizer:
    return Tokenizer.from_file(str(args.out / "tokenizer.json"))


def _draft_file(args: argparse.Namespace) -> str:
    return "distilled.pt" if (args.out / "distilled.pt").exists() else "draft.pt"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recipes.pair", description="Train the bundled pair of models.")
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k/, corpus/, blocksworld/, game24/")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, windows and the result")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--minutes", type=float, default=75.0, help="of the target's training")
    parser.add_argument("--draft-minutes", type=float, default=5.0)
    parser.add_argument("--distil-minutes", type=float, default=12.0)
    parser.add_argument("--million-tokens", type=float, default=28.672, help="training tokens to make, decisions apart")
    parser.add_argument("--held-out-windows", type=int, default=8, help="of each kind")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to use instead of training one"
    )
    parser.add_argument("--init", type=Path, metavar="DIR", help="a target to begin with instead of random weights")
    parser.add_argument("--start-rate", type=float, default=1.0, help="share of the full learning rate to begin with")
    parser.add_argument("--processes", type=int, default=2, help="training processes of one thread each")
    parser.add_argument("--batch", type=int, default=4, help="windows of a step in each process, a multiple of 4")
    parser.add_argument("--prompts", type=int, default=30, help="prompts of each kind in the evaluation")
    parser.add_argument("--own-texts", type=float, default=1.0, help="factor on the number of texts to sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C compiler")
    parser.set_defaults(target_shape=TARGET, draft_shape=DRAFT)
    return parser


if __name__ == "__main__":
    main()
