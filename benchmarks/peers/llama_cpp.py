"""llama.cpp by its Python binding, on our target's weights, dtype and threads; alone, or with our draft."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from seedmp import metrics
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.peers.to_gguf import check_llama, in_a_line, optional, write_gguf
from seedmp.benchmarks.peers.transformers import ASSISTANT_TOKENS
from seedmp.benchmarks.summary import Result
from seedmp.errors import SeedmpError
from seedmp.measuring.engines import NotRunError, weights_gib
from seedmp.models.load import ModelSpec, load_config, load_model

T = TypeVar("T")
SPARE_TOKENS = 16  # of the context: a draft runs ahead of the text
KV_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
HOW_IT_DRAFTS = (
    f"chains of {ASSISTANT_TOKENS} greedy tokens of our draft, a second model of the binding behind its draft_model="
)


@dataclass(frozen=True)
class LlamaCppSubject:
    """The target, and the draft if there is one, in this process.

    Args:
        context_len: tokens that prompt and text have together, at most.
    """

    target: ModelSpec
    draft: ModelSpec | None
    dtype: str
    threads: int
    context_len: int

    def start(self) -> LlamaCpp:
        """Look whether it can run; models are loaded at first use.

        Raises:
            NotRunError: the extra is missing, or this model or node cannot be used.
        """
        return LlamaCpp(self)

    def need_gib(self) -> float:
        """The weights. The model that is converted is freed before the written one is loaded."""
        size_bytes = 4 if self.dtype in ("auto", "float32") else 2
        return sum(weights_gib(spec.shape, size_bytes) for spec in (self.target, self.draft) if spec)


def llama_cpp_subject(options: Options, threads: int, context_len: int, *, with_draft: bool) -> LlamaCppSubject:
    """The peer of our engines."""
    assert options.dtype is not None
    draft = options.draft_spec if with_draft else None
    return LlamaCppSubject(options.target_spec, draft, options.dtype, threads, context_len)


class LlamaCpp:
    """Greedy decoding by llama.cpp, a prompt at a time.

    Models are loaded at the first call, which is the row's warm-up, and not at the start. Subjects are started two at a
    time, and while a model is loaded, transformers and the binding change things that the whole process shares (torch's
    default device, stdout).
    """

    def __init__(self, subject: LlamaCppSubject) -> None:
        self.subject = subject
        self.draft: Any = None
        self.target: Any = None
        self.gguf, self.llama_cpp = optional("gguf", "gguf"), optional("llama_cpp", "llama-cpp-python")
        if torch.cuda.is_available() and not self.llama_cpp.llama_supports_gpu_offload():
            raise NotRunError("llama-cpp-python is built without CUDA, and the other rows use the GPU")
        for spec in (subject.target, subject.draft):
            if spec is not None:
                check_llama(load_config(spec))

    def close(self) -> None:
        """Give the memory back."""
        for model in (self.target, self.draft):
            if model is not None:
                model.close()
        self.target = self.draft = None

    def one_by_one(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> Result:
        """Continue all prompts; nothing of an earlier call is reused.

        Raises:
            NotRunError: a model could not be converted or loaded, or llama.cpp failed.
        """
        if self.target is None:
            _or_not_run(self._load_all)
        texts = []
        start_s = time.perf_counter()
        for prompt in prompts:
            texts.append(_or_not_run(self._continue, prompt, max_tokens))
        wall_s = time.perf_counter() - start_s
        return Result(wall_s, metrics.tokens_per_s(sum(map(len, texts)), wall_s), tuple(texts))

    def _load_all(self) -> None:
        drafter = None
        if self.subject.draft is not None:
            self.draft = self._load(self.subject.draft)
            drafter = Drafter(self.draft)
        # To verify drafts the binding needs logits of every token, which it copies.
        self.target = self._load(self.subject.target, draft_model=drafter, logits_all=drafter is not None)

    def _load(self, spec: ModelSpec, **options: Any) -> Any:
        """A model of llama.cpp. Its file is removed as soon as it is read."""
        subject, on_gpu = self.subject, torch.cuda.is_available()
        dtype = torch.float32 if subject.dtype == "auto" else getattr(torch, subject.dtype)
        kv_type = int(self.gguf.GGMLQuantizationType[KV_TYPES[dtype]])
        with tempfile.TemporaryDirectory(prefix="seedmp-gguf-") as folder:
            path = Path(folder) / "model.gguf"
            model: Any = load_model(spec, dtype, "cuda:0" if on_gpu else "cpu")
            need_bytes, free_bytes = model.num_parameters() * dtype.itemsize, shutil.disk_usage(folder).free
            if need_bytes > free_bytes:
                raise NotRunError(f"GGUF: {folder} has {free_bytes >> 20} MiB free, {need_bytes >> 20} are needed")
            write_gguf(model, path)
            del model
            return self.llama_cpp.Llama(
                str(path), n_ctx=subject.context_len + SPARE_TOKENS, n_gpu_layers=-1 if on_gpu else 0,
                n_threads=subject.threads, n_threads_batch=subject.threads, use_mmap=False,
                type_k=kv_type, type_v=kv_type, verbose=False, **options,
            )  # fmt: skip

    def _continue(self, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
        for model in (self.target, self.draft):
            if model is not None:
                model.reset()
        return tuple(islice(self.target.generate(list(prompt), temp=0.0), max_tokens))


@dataclass(frozen=True)
class Drafter:
    """Our draft as the binding wants one: it only calls it, so this need not be a ``LlamaDraftModel``."""

    draft: Any

    def __call__(self, input_ids: Any, /, **options: Any) -> Any:
        """[N] int32: committed token ids in, proposed ones out; the draft keeps the KV of the prefix that it has."""
        proposal = islice(self.draft.generate(input_ids.tolist(), temp=0.0), ASSISTANT_TOKENS)
        return np.fromiter(proposal, dtype=np.intc)


def _or_not_run(call: Callable[..., T], *arguments: Any) -> T:
    """The result of a call. If it fails, only its row is lost, and the benchmark goes on."""
    try:
        return call(*arguments)
    except SeedmpError:
        raise
    except Exception as error:
        raise NotRunError(f"llama.cpp: {in_a_line(error)}") from error
