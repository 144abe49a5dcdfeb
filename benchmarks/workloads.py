"""What the benchmarks ask: published files where they are given, a few texts of our own where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder
from seedmp.benchmarks.texts import CONVERSATIONS, PASSAGES
from seedmp.errors import ConfigError
from seedmp.search.task import Ask, Task
from seedmp.search.thought_tree import ROOT_ID, Thought
from seedmp.tasks.gsm8k import load_gsm8k
from seedmp.tasks.jsonl import FieldError, read_problems, text_field
from seedmp.tasks.registry import get_task

# Where a folder has the published files.
PUBLISHED = {
    "gsm8k": "gsm8k/test.jsonl",
    "blocksworld": "blocksworld/step_4.jsonl",
    "creative_writing": "creative_writing/inputs.txt",
    "c4": "c4/c4_small.jsonl",
    "openwebtext": "openwebtext/openwebtext_eval.jsonl",
    "cnn_dm": "cnn_dm/question.jsonl",
    "mt_bench": "mt_bench/question.jsonl",
}


def data_file(options: Options, what: str) -> Path | None:
    """The file of a data set; None where our own texts are used.

    Raises:
        ConfigError: the folder lacks it.
    """
    if options.data is None or options.data.is_file():
        return options.data
    path = options.data / PUBLISHED[what]
    if not path.is_file():
        raise ConfigError(f"--data {options.data}: has no {PUBLISHED[what]}, which this benchmark reads")
    return path


# --- questions: schedules, acceptance, peers, scale ----------------------------------------------------


def questions(options: Options, num: int) -> list[str]:
    """GSM8K questions; taken again from the first where there are fewer."""
    found = [problem.question for problem in load_gsm8k(data_file(options, "gsm8k"), num)]
    return [found[number % len(found)] for number in range(num)]


def question_ids(encoder: Encoder, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Prompts of questions, as the bundled pair knows them or as a chat.

    One that comes again gets a number, so that no prompt shares all its KV with another.
    """
    seen: dict[str, int] = {}
    prompts = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        again = f"{seen[text]}. " if seen[text] > 1 else ""
        prompts.append(encoder.prompt(f"Question: {again}{text}\nAnswer:", again + text))
    return prompts


# --- roots of reasoning trees: table1 -------------------------------------------------------------------


@dataclass(frozen=True)
class Root:
    """One root of a reasoning tree: what its thoughts are asked, and then their evaluations."""

    task: Task[Any]
    problem: Any
    max_tokens: int  # of a thought

    def thought(self) -> Ask:
        """What each thought is asked: the same prompt for all."""
        ask = self.task.thought_ask(self.problem, ())
        return Ask(ask.prompt, min(ask.max_tokens, self.max_tokens), ask.stop, ask.regex, ask.choices)

    def evaluations(self, texts: Sequence[str]) -> list[Ask]:
        """What is asked about the thoughts.

        A vote on all of them each, where the task votes (creative writing); else each thought's value; for
        word problems without such a question, the answer that a thought leads to.
        """
        paths = [self._path(number, text) for number, text in enumerate(texts)]
        kind = self.task.defaults.evaluate_at(1)
        if kind == "vote":
            return [self.task.vote_ask(self.problem, [path or [_empty()] for path in paths])] * len(texts)
        if kind == "self-consistency":
            prompt = self.thought().prompt
            return [Ask(f"{prompt} {text.strip()}\n####", 12, ("\n",)) for text in texts]
        return [self.task.value_ask(self.problem, path) for path in paths]

    def _path(self, number: int, text: str) -> list[Thought]:
        """The path of one thought; empty where the text is not in the task's format."""
        parsed = self.task.read_thought(self.problem, (), text)
        if parsed is None:
            return []
        state = parsed.state if parsed.state is not None else ""
        return [Thought(str(number), ROOT_ID, parsed.text, state)]


def _empty() -> Thought:
    return Thought("0", ROOT_ID, "?")


def roots(options: Options, task_name: str, num: int, max_tokens: int, *, chat: bool) -> list[Root]:
    """Roots of a task's problems.

    Raises:
        ConfigError: no such task, or the file has another format.
    """
    task = get_task(task_name, chat=chat)
    return [Root(task, problem, max_tokens) for problem in task.load(data_file(options, task_name), num)]


# --- passages to continue: sequoia ---------------------------------------------------------------------


def passages(options: Options) -> dict[str, list[str]]:
    """Texts by data set, each to be cut to a prompt; all data sets of a folder, one of a file, or our own."""
    if options.data is None:
        return {"our own": list(PASSAGES)}
    if options.data.is_file():
        return {options.data.stem: read_problems(options.data, "C4, OpenWebText or CNN/DM", None, _passage)}
    names = [name for name in ("c4", "openwebtext", "cnn_dm") if (options.data / PUBLISHED[name]).is_file()]
    if not names:
        raise ConfigError(f"--data {options.data}: has none of c4, openwebtext and cnn_dm")
    return {name: read_problems(options.data / PUBLISHED[name], name, 400, _passage) for name in names}


def _passage(record: dict[str, Any]) -> str:
    """The passage itself; of Spec-Bench's CNN/DM the article, which follows ``Summarize:``."""
    if "turns" in record:
        return _turns(record)[0].removeprefix("Summarize: ")
    return text_field(record, "text")


# --- conversations: mtbench ----------------------------------------------------------------------------


def conversations(options: Options, num: int | None) -> list[tuple[str, str]]:
    """MT-bench questions: what the user says first, and then.

    Raises:
        ConfigError: the file has another format.
    """
    path = data_file(options, "mt_bench")
    return list(CONVERSATIONS[:num]) if path is None else read_problems(path, "MT-bench", num, _two_turns)


def _two_turns(record: dict[str, Any]) -> tuple[str, str]:
    turns = _turns(record)
    if len(turns) != 2:
        raise FieldError(f"field 'turns' has {len(turns)} entries: must be two")
    return turns[0], turns[1]


def _turns(record: dict[str, Any]) -> list[str]:
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise FieldError(f"field 'turns' is {turns!r}: must be a list of texts")
    return turns
