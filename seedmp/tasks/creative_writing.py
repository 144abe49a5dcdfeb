"""Creative writing: a passage whose paragraphs end with given sentences; first a plan, then the passage.

The input is that of the Tree of Thoughts paper: four random sentences in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.errors import ConfigError
from seedmp.search.task import Ask, Defaults, Parsed, Task
from seedmp.search.thought_tree import Thought
from seedmp.tasks.chat import conversation, read_choice
from seedmp.tasks.jsonl import FieldError, check_limit, read_lines

NUM_SENTENCES = 4
MAX_SENTENCES = 9  # "Plan 9" and "Endings kept: 9" are one digit
EXAMPLES = (
    "The door was open. Nobody had seen the cat. She put the letter in her pocket. It began to snow.",
    "The old bridge was gone. He counted his coins once more. The lamp went out. They laughed all the way home.",
    "The bell rang twice. Her shoes were full of sand. The fox looked back at them. That was the end of the bread.",
    "Nothing in the garden moved. The king had a cold. The boat was smaller than it looked. Then she knew the tune.",
)

_BOUNDARY = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"”’')]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)\s+(?=[\"“‘'(]?[A-Z0-9])")
# A few published sentences are fragments without a period: "The heat He picked up trash ...".
_FRAGMENT_END = re.compile(r"(?<=[a-z]) (?=[A-Z][a-z]+ [a-z])")
_PLAIN_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


@dataclass(frozen=True)
class CreativeWritingProblem:
    """What the paragraphs have to end with.

    Attributes:
        sentences: one a paragraph, in order.
    """

    sentences: tuple[str, ...]


def paragraphs_of(passage: str) -> list[str]:
    """The lines of a passage that have words."""
    return [line.strip() for line in passage.split("\n") if line.strip()]


def endings_kept(passage: str, sentences: Sequence[str]) -> int:
    """Number of paragraphs that end with their own sentence. Blanks and kinds of quotes are ignored."""
    pairs = zip(paragraphs_of(passage), sentences, strict=False)
    return sum(_ends_with(_normal(paragraph), _normal(sentence)) for paragraph, sentence in pairs)


def split_sentences(line: str) -> tuple[str, ...]:
    """The sentences of a line. If there are fewer than four, fragments without a period count as sentences."""
    sentences = _BOUNDARY.split(line.strip())
    while len(sentences) < NUM_SENTENCES:
        cut = next((idx for idx, sentence in enumerate(sentences) if _FRAGMENT_END.search(sentence)), None)
        if cut is None:
            break
        sentences[cut : cut + 1] = _FRAGMENT_END.split(sentences[cut], maxsplit=1)
    return tuple(sentences)


def load_creative_writing(path: Path | None = None, limit: int | None = None) -> list[CreativeWritingProblem]:
    """Load problems.

    Args:
        path: a file as published: four sentences a line. None takes the few that are shipped.
        limit: problems at most; None for all.

    Raises:
        ConfigError: the file cannot be read, has another format or no problems; names file and line.
    """
    if path is None:
        check_limit(limit)
        return [_parse(line) for line in EXAMPLES[:limit]]
    return read_lines(path, "creative writing", limit, _parse)


class CreativeWriting(Task[CreativeWritingProblem]):
    """For the bundled pair. Plans are voted on. A passage is valued by how many endings the model says it kept."""

    name = "creative_writing"
    depth = 2
    value_labels: Mapping[str, float] = {f" {kept}": float(kept) for kept in range(NUM_SENTENCES + 1)}
    defaults = Defaults(num_thoughts=3, temperature=0.8, evaluate=("vote", "score"), num_values=5, beam=1)

    def load(self, path: Path | None = None, limit: int | None = None) -> list[CreativeWritingProblem]:
        return load_creative_writing(path, limit)

    def describe(self, problem: CreativeWritingProblem) -> str:
        return f"Paragraphs that end with: {' '.join(problem.sentences)}"

    def thought_ask(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> Ask:
        if path:
            prompt = f"{_request(problem)}\nPlan:{path[0].text}\nStory:\n"
            return Ask(prompt, max_tokens=320, stop=("\nEndings kept", "\n\n"))
        return Ask(f"{_request(problem)}\nPlan:", max_tokens=72, stop=("\n",))

    def read_thought(self, problem: CreativeWritingProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        kept = text.split("\nEndings kept")[0].rstrip() if path else text.split("\n")[0].rstrip()
        return Parsed(kept, " ".join(kept.split()), bool(path)) if kept.strip() else None

    def value_ask(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> Ask:
        """Endings kept by a passage; a plan has none yet."""
        if len(path) < self.depth:
            raise ConfigError(f"task {self.name!r}: plans are valued by vote; choose evaluate=('vote', 'score')")
        prompt = f"{self.thought_ask(problem, path[:1]).prompt}{path[-1].text}\nEndings kept:"
        labels = tuple(label for label, kept in self.value_labels.items() if kept <= len(problem.sentences))
        return Ask(prompt, max_tokens=2, choices=labels)

    def vote_ask(self, problem: CreativeWritingProblem, paths: Sequence[Sequence[Thought]]) -> Ask:
        """Vote on plans. Passages cannot be voted on: several of them are longer than the pair can read."""
        if any(len(path) != 1 for path in paths):
            raise ConfigError(f"task {self.name!r}: the bundled pair votes on plans only; value passages by 'score'")
        plans = "".join(f"\nPlan {number}:{path[0].text}" for number, path in enumerate(paths, 1))
        return Ask(f"{_request(problem)}{plans}\nBest plan:", max_tokens=2, choices=_numbers(len(paths)))

    def read_vote(self, text: str, num_choices: int) -> int | None:
        return read_choice(text, num_choices)

    def is_correct(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> bool:
        """Whether there is a paragraph for each sentence, no other one, and each ends with its sentence."""
        if len(path) < self.depth or len(paragraphs_of(path[-1].text)) != len(problem.sentences):
            return False
        return endings_kept(path[-1].text, problem.sentences) == len(problem.sentences)

    def score(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> dict[str, Any]:
        """``endings_kept`` of ``num_endings``."""
        passage = path[-1].text if len(path) == self.depth else ""
        return {"endings_kept": endings_kept(passage, problem.sentences), "num_endings": len(problem.sentences)}


_OPENING = """Write a coherent passage of {count} short paragraphs. The paragraphs must end with these sentences, \
in this order, each word for word:
{endings}

First make a plan: one line that says what happens in each paragraph. Write the line only, not the passage."""
_WRITE = """Now write the passage after this plan: {count} paragraphs with an empty line between them, no title. \
Each paragraph's last sentence must be its given sentence, word for word."""
_VOTE = """A passage of {count} paragraphs was asked for. The paragraphs must end with these sentences, in this order:
{endings}

Decide which {kind} is the most promising: it must be coherent and lead to each of the sentences in a natural way.

{choices}

Answer with the number of the best {kind} alone."""


class CreativeWritingChat(CreativeWriting):
    """For chat models, set up as in the paper: five plans, five passages of the best one, five votes on each."""

    defaults = Defaults(num_thoughts=5, temperature=1.0, evaluate="vote", num_values=5, beam=1)

    def thought_ask(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> Ask:
        opening = _OPENING.format(count=len(problem.sentences), endings=_listed(problem))
        if not path:
            return Ask(conversation(opening, answer_prefix="Plan:"), max_tokens=160, stop=("\n\n", "\nPassage"))
        write = _WRITE.format(count=len(problem.sentences))
        return Ask(conversation(opening, f"Plan: {path[0].text}", write, answer_prefix="Passage:\n"), max_tokens=800)

    def read_thought(self, problem: CreativeWritingProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        """A plan, made one line, or a passage without its heading."""
        text = re.sub(r"^\W*(?:plan|passage)\s*:\W*", "", text.replace("**", "").strip(), flags=re.IGNORECASE)
        if path:
            kept = "\n\n".join(paragraphs_of(text))
        else:
            kept = " ".join(re.split(r"\n\W*passage", text, maxsplit=1, flags=re.IGNORECASE)[0].split())
        return Parsed(kept, kept, bool(path)) if re.search(r"\w", kept) else None

    def value_ask(self, problem: CreativeWritingProblem, path: Sequence[Thought]) -> Ask:
        raise ConfigError(f"task {self.name!r} for chat models is valued by vote; choose evaluate='vote'")

    def vote_ask(self, problem: CreativeWritingProblem, paths: Sequence[Sequence[Thought]]) -> Ask:
        kind = "passage" if len(paths[0]) == self.depth else "plan"
        choices = "\n\n".join(f"{kind.capitalize()} {number}:\n{path[-1].text}" for number, path in enumerate(paths, 1))
        question = _VOTE.format(count=len(problem.sentences), endings=_listed(problem), kind=kind, choices=choices)
        prompt = conversation(question, answer_prefix=f"The best {kind} is")
        return Ask(prompt, max_tokens=4, stop=("\n",), choices=_numbers(len(paths)))


def _request(problem: CreativeWritingProblem) -> str:
    """The pair was trained on plain quotes."""
    endings = " ".join(problem.sentences).translate(_PLAIN_QUOTES)
    return f"Write a story whose paragraphs end with these sentences: {endings}"


def _listed(problem: CreativeWritingProblem) -> str:
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(problem.sentences, 1))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(f" {number}" for number in range(1, count + 1))


def _normal(text: str) -> str:
    return " ".join(text.translate(_PLAIN_QUOTES).split())


def _ends_with(paragraph: str, sentence: str) -> bool:
    """Whether the ending begins at a word's beginning: ``He went out`` does not end with ``ut``."""
    head = paragraph.removesuffix(sentence)
    return len(head) < len(paragraph) and not head[-1:].isalnum()


def _parse(line: str) -> CreativeWritingProblem:
    sentences = split_sentences(line)
    if not 2 <= len(sentences) <= MAX_SENTENCES:
        raise FieldError(f"{len(sentences)} sentence(s) in the line: must be four, or from 2 to {MAX_SENTENCES}")
    return CreativeWritingProblem(sentences)
