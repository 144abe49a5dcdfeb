"""Generated values for every public field and method: each gives a result or a typed error, in time, to its own caller.

The fields and parameters are found by introspection, so a new one is covered by itself. How long: the environment's
SEEDMP_FUZZ_CASES (cases of each test) and SEEDMP_FUZZ_SEED; a failure prints both, and the case.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import json
import os
import random
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seedmp import AsyncEngine, Engine, SamplingParams
from seedmp.branch import Branch
from seedmp.checks import shown
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError, SeedmpError
from seedmp.request import RequestHandle
from tests.helpers.odd_values import OddValues

NUM_CASES = int(os.environ.get("SEEDMP_FUZZ_CASES", "400"))
SEED = int(os.environ.get("SEEDMP_FUZZ_SEED", "0"))
DEADLINE_S = 30.0
PROBE_EVERY = 50
PROMPT = "Input: 4 7 8 10\nStep:"
PROBE = SamplingParams(temperature=0.0, max_tokens=12)
SHORT = SamplingParams(max_tokens=3, seed=1)
# What ends the engine, and what its own thread calls.
NOT_CALLED = {"close", "push", "finish"}

pytestmark = [pytest.mark.timeout(600 + NUM_CASES), pytest.mark.slow]


class Live:
    """One engine for all cases, whose probe request must not change."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.pool = ThreadPoolExecutor(4)
        self.faults: list[str] = []
        self.text = self.probe()
        self.outputs = engine.generate(PROMPT, SHORT, timeout=DEADLINE_S)

    def probe(self) -> str:
        return self.engine.generate(PROMPT, PROBE, timeout=DEADLINE_S)[0].text

    def check(self, what: str) -> None:
        """The engine serves, others' text is what it was, and no case so far was at fault."""
        assert self.engine._io.dead is None, f"{what}: the engine died: {self.engine._io.dead}"
        assert self.probe() == self.text, f"{what}: the text of another request changed"
        faults, self.faults = self.faults, []
        assert not faults, "\n".join(faults)

    def attempt(self, what: str, call: Callable[[], Any]) -> SeedmpError | None:
        """Call, in time; whatever comes that is neither a result nor one of our errors is a fault."""
        running = self.pool.submit(call)
        try:
            running.result(DEADLINE_S + 10)
        except SeedmpError as error:
            if len(str(error)) > 100_000:
                self.faults.append(f"{what}: a message of {len(str(error))} characters")
            return error
        except FutureTimeoutError:
            self.faults.append(f"{what}: no answer in time")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.faults.append(f"{what}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})")
        return None


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    print(f"SEEDMP_FUZZ_SEED={SEED} SEEDMP_FUZZ_CASES={NUM_CASES}")
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch, Engine(num_drafts=1, k_config=(2, 1), kv_slots=4096) as engine:
        patch.chdir(folder)  # odd names of folders are names in this one
        live = Live(engine, folder)
        yield live
        live.check("at the end")
        live.pool.shutdown(wait=False)


def said(name: str, arguments: dict[str, Any]) -> str:
    return f"seed {SEED}: {name}({', '.join(f'{key}={shown(value)}' for key, value in arguments.items())})"


def call(thing: Any, name: str, arguments: dict[str, Any]) -> None:
    used(getattr(thing, name)(**arguments))


def used(result: Any) -> None:
    """Wait for what a method gave back, as its caller would."""
    if isinstance(result, RequestHandle):
        result.result(DEADLINE_S)
    elif isinstance(result, Future):
        try:
            result.result(DEADLINE_S)
        finally:
            result.cancel()
    elif isinstance(result, Iterator):
        for _ in itertools.islice(result, 20):
            pass
        getattr(result, "close", lambda: None)()
    elif isinstance(result, list):
        for item in result:
            used(item)
    elif inspect.iscoroutine(result):
        asyncio.run(_within(result))
    elif inspect.isasyncgen(result):
        asyncio.run(_within(_read(result)))


async def _within(result: Any) -> None:
    await asyncio.wait_for(result, DEADLINE_S)


async def _read(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        pass


def good(live: Live, name: str, chance: random.Random) -> Any:
    """What a parameter of this name is usually given."""
    ids = [5, 6, 7]
    usual: dict[str, list[Any]] = {
        "prompts": [PROMPT, [PROMPT], [ids, ids]],
        "prompt": [PROMPT, ids],
        "params": [SHORT],
        "timeout": [DEADLINE_S / 2],
        "priority": [0, 3],
        "user": ["", "me"],
        "first_stream": [0, 2],
        "branch": [0],
        "children": [()],
        "messages": [[{"role": "user", "content": "x"}]],
        "parent": [0],
        "branch_id": [2**40],
        "free": [False, True],
        "prompt_ids": [ids],
        "continuations": [[ids, ids]],
        "text": ["x"],
        "special": [False],
        "token_ids": [ids],
        "output": live.outputs,
        "outputs": [live.outputs],
        "handles": [[]],
        "n": [1, 2],
        "texts": [["x", " y"]],
        "listener": [print],
        "reset": [False],
        "folder": [live.folder],
        "target": [None],
        "draft": [None],
        "plan": [None],
        "launcher": [None],
    }
    assert name in usual, f"parameter {name} is new: say what it is usually given"
    return chance.choice(usual[name])


def methods_of(cls: type) -> dict[str, inspect.Signature]:
    """Public methods by name."""
    found = {}
    for name, member in inspect.getmembers(cls):
        if not name.startswith("_") and name not in NOT_CALLED and inspect.isfunction(member):
            found[name] = inspect.signature(member)
    return found


def fuzz_methods(live: Live, make: Callable[[], Any], cls: type) -> None:
    """Each method with one or two odd arguments among usual ones."""
    odd, chance = OddValues(SEED), random.Random(SEED)
    methods = methods_of(cls)
    refused = 0
    for case, (name, signature) in zip(range(NUM_CASES), itertools.cycle(methods.items()), strict=False):
        names = [parameter for parameter in signature.parameters if parameter != "self"]
        arguments = {parameter: good(live, parameter, chance) for parameter in names}
        for parameter in chance.sample(names, min(len(names), chance.choice((1, 1, 2)))):
            arguments[parameter] = odd.any()
        what = said(f"{cls.__name__}.{name}", arguments)
        refused += live.attempt(what, partial(call, make(), name, arguments)) is not None
        if case % PROBE_EVERY == PROBE_EVERY - 1:
            live.check(what)
    live.check("after all")
    assert refused > NUM_CASES / 10, "hardly a value was refused: are they odd enough?"


def test_methods_of_the_engine(live: Live) -> None:
    fuzz_methods(live, lambda: live.engine, Engine)


def test_methods_of_a_branch(live: Live) -> None:
    fuzz_methods(live, lambda: live.engine.open(PROMPT), Branch)


def test_methods_of_a_handle(live: Live) -> None:
    fuzz_methods(live, lambda: live.engine.submit(PROMPT, SHORT), RequestHandle)


def test_methods_of_the_async_engine(live: Live) -> None:
    methods = {name: signature for name, signature in methods_of(AsyncEngine).items() if name != "start"}
    assert set(methods) == {"generate", "stream"}
    fuzz_methods(live, lambda: AsyncEngine(live.engine), AsyncEngine)


def generate(engine: Engine, fields: dict[str, Any]) -> None:
    """A value in a wide range may make a text as long as the model allows, so a time is part of the question."""
    engine.generate(PROMPT, SamplingParams(**fields), timeout=DEADLINE_S / 3)


def test_fields_of_sampling_params(live: Live) -> None:
    odd, chance = OddValues(SEED), random.Random(SEED)
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    served = 0
    for case, name in zip(range(NUM_CASES), itertools.cycle(names), strict=False):
        fields: dict[str, Any] = {"max_tokens": 3, name: odd.any()}
        if chance.random() < 0.3:
            fields[chance.choice(names)] = odd.any()
        what = said("SamplingParams", fields)
        error = live.attempt(what, partial(generate, live.engine, fields))
        served += error is None
        if case % PROBE_EVERY == PROBE_EVERY - 1:
            live.check(what)
    live.check("after all")
    assert served > NUM_CASES / 20, "hardly a value was served"


def test_the_values_that_numpy_and_torch_make_are_served(live: Live) -> None:
    """What a field allows as a Python number, it allows as anybody's."""
    import numpy as np
    import torch

    usual = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "max_tokens": 3, "seed": 1, "stop_token_ids": [5, 6]}
    plain = live.engine.generate(PROMPT, SamplingParams(**usual), timeout=DEADLINE_S)[0]  # type: ignore[arg-type]
    for make in (np.array, torch.tensor):
        fields: dict[str, Any] = {name: make(value) for name, value in usual.items()}
        assert live.engine.generate(PROMPT, SamplingParams(**fields), timeout=DEADLINE_S)[0].text == plain.text


class NoLauncher:
    """Starts nothing."""

    def start(self, config: EngineConfig, folder: Path) -> Any:
        raise ConfigError("nothing is started here")


def test_settings_of_an_engine(live: Live) -> None:
    """Through the door of the engine, up to where processes would start."""
    odd, chance = OddValues(SEED), random.Random(SEED)
    names = [name for name in inspect.signature(Engine).parameters if name not in ("settings", "launcher")]
    names += [name for name in inspect.signature(EngineConfig).parameters if name not in ("target", "draft")]
    for case, name in zip(range(NUM_CASES), itertools.cycle(names), strict=False):
        settings = {name: odd.any()}
        if chance.random() < 0.3:
            settings["method"] = chance.choice(("specinfer", "opt-tree", "eagle", "coupled", "ngram", "ar"))
        what = said("Engine", settings)
        error = live.attempt(what, partial(Engine, launcher=NoLauncher(), **settings))
        if error is not None and not isinstance(error, ConfigError):
            live.faults.append(f"{what}: {error!r}")
        if case % PROBE_EVERY == PROBE_EVERY - 1:
            live.check(what)
    live.check("after all")


def test_settings_that_are_served_reach_the_workers() -> None:
    odd, chance = OddValues(SEED), random.Random(SEED)
    names = [name for name in inspect.signature(EngineConfig).parameters if name not in ("target", "draft")]
    end = time.monotonic() + DEADLINE_S
    for name in itertools.islice(itertools.cycle(names), NUM_CASES * 5):
        settings = {name: odd.any(), "method": chance.choice(("mcsd", "specinfer", "opt-tree", "eagle", "coupled"))}
        try:
            config = EngineConfig("-", "-", **settings)
        except ConfigError:
            continue
        plain = json.loads(json.dumps(config.to_plain()))
        assert EngineConfig.from_plain(plain) == config, said("EngineConfig", settings)
        if time.monotonic() > end:
            break
