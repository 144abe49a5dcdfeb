"""Documents of running text: GSM8K, stories to given endings, choices among plans, plain prose.

Stories (``Plan`` with probability 0.6, ``Endings kept`` with probability 0.5)::

    Write a story whose paragraphs end with these sentences: <s1> <s2> <s3> <s4>
    Plan: <first 8 words of paragraph 1> / <of 2> / <of 3> / <of 4>
    Story:
    <paragraph 1>
    ...
    Endings kept: 4

``Endings kept`` counts the paragraphs that end with their sentence; in three of ten documents that
have it, other sentences were put at the end of some paragraphs. A choice among two to five plans::

    Write a story whose paragraphs end with these sentences: <s1> <s2> <s3> <s4>
    Plan 1: ...
    Plan 2: ...
    Best plan: 2
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from recipes.pair.documents import CONNECTING, GIVEN, PLAIN, RESULT, UNTRAINED, Document
from seedmp.tasks.gsm8k import load_gsm8k

HELD_OUT_BOOKS = ("the_enchanted_castle_3536", "the_light_princess_697", "the_tale_of_cuffy_bear_15528")

PLAN_WORDS = 8
MAX_PARAGRAPH_WORDS = 55  # longer ones are cut to their last sentences
MAX_ENDING_WORDS = 22
MAX_STORY_WORDS = 290
PLANNED = 0.6
COUNTED = 0.5
CORRUPTED = 0.3
TOLD = 0.5  # stories whose endings are no speech
PASSAGE_CHARS = 2600  # of plain prose, more than a window holds
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)([\"')]*) +(?=[\"'(]*[A-Z])")

Paragraph = tuple[str, str]  # (what stands before the last sentence, the last sentence)


def gsm8k_documents(file: Path, chance: random.Random) -> Iterator[Document]:
    """``Question: ... Answer: ... #### 72`` without calculator marks, over and over in another order."""
    problems = load_gsm8k(file)
    while True:
        chance.shuffle(problems)
        for problem in problems:
            yield Document([(f"Question: {problem.question}\n", PLAIN), (f"Answer: {problem.answer}\n", PLAIN)])


class Library:
    """Books as paragraphs, and endless documents made from them.

    Args:
        files: one book each, paragraphs separated by empty lines.
        chance: consumed; the same state gives the same documents.
    """

    def __init__(self, files: list[Path], chance: random.Random) -> None:
        self._chance = chance
        self._prose: list[list[str]] = []
        self._books: list[list[Paragraph]] = []
        for file in files:
            lines = [" ".join(part.split()) for part in file.read_text(encoding="utf-8").split("\n\n")]
            self._prose.append([line for line in lines if line])
            self._books.append([cut for line in lines if (cut := cut_paragraph(line))])
        self._sizes = [len(book) for book in self._books]

    def passages(self) -> Iterator[Document]:
        """Plain prose, a paragraph a line, longer than a window: the reader cuts it."""
        while True:
            book = self._chance.choices(self._prose, self._sizes)[0]
            start = self._chance.randrange(len(book))
            document, num_chars = Document(end_weight=UNTRAINED), 0
            for line in book[start:]:
                document.add(f"{line}\n", PLAIN)
                num_chars += len(line)
                if num_chars > PASSAGE_CHARS:
                    break
            yield document

    def stories(self) -> Iterator[Document]:
        """Two to four paragraphs to their endings."""
        while True:
            story = self._run()
            document = Document([(f"{story_request([ending for _, ending in story])}", CONNECTING)])
            if self._chance.random() < PLANNED:
                document.add("Plan:", CONNECTING)
                document.add(f" {plan_of(story)}\n", PLAIN)
            document.add("Story:\n", CONNECTING)
            counted = self._chance.random() < COUNTED
            if counted and self._chance.random() < CORRUPTED:
                written = self._corrupt(story)
                document.add("".join(f"{body} {ending}\n" for body, ending in written), UNTRAINED)
            else:
                written = story
                for body, ending in story:
                    document.add(body, PLAIN)
                    document.add(f" {ending}\n", RESULT)
            if counted:
                kept = sum(had[1] == wanted[1] for had, wanted in zip(written, story, strict=True))
                document.add_label("Endings kept", str(kept))
            yield document

    def votes(self) -> Iterator[Document]:
        """The right plan at a random place among plans of other passages."""
        while True:
            book = self._pick_book()
            story = self._run(book)
            others = self._chance.randint(1, 4)
            plans = [plan_of(self._run(book if self._chance.random() < 0.3 else None)) for _ in range(others)]
            best = self._chance.randrange(len(plans) + 1)
            plans.insert(best, plan_of(story))
            document = Document([(story_request([ending for _, ending in story]), GIVEN)], end_weight=UNTRAINED)
            for number, plan in enumerate(plans, 1):
                document.add(f"Plan {number}: {plan}\n", GIVEN)
            document.add_label("Best plan", str(best + 1))
            yield document

    def _pick_book(self) -> list[Paragraph]:
        return self._chance.choices(self._books, self._sizes)[0]

    def _run(self, book: list[Paragraph] | None = None) -> list[Paragraph]:
        """Neighbouring paragraphs, not too long together."""
        while True:
            source = book or self._pick_book()
            count = self._chance.choice((2, 3, 4, 4, 4))
            told = self._chance.random() < TOLD
            start = self._chance.randrange(max(1, len(source) - count))
            run = source[start : start + count]
            num_words = sum(len(body.split()) + 2 * len(ending.split()) for body, ending in run)
            if told and any('"' in ending for _, ending in run):
                continue
            if len(run) == count and num_words <= MAX_STORY_WORDS and len({end for _, end in run}) == count:
                return run

    def _corrupt(self, story: list[Paragraph]) -> list[Paragraph]:
        """Other sentences at the end of at least one paragraph."""
        spoilt = self._chance.sample(range(len(story)), self._chance.randint(1, len(story)))
        written = list(story)
        for idx in spoilt:
            _, ending = self._chance.choice(self._pick_book())
            if self._chance.random() < 0.2:
                ending = self._chance.choice(story)[1]
            written[idx] = (story[idx][0], ending)
        return written


def story_request(endings: list[str]) -> str:
    """The line that asks for a story."""
    return f"Write a story whose paragraphs end with these sentences: {' '.join(endings)}\n"


def plan_of(story: list[Paragraph]) -> str:
    """The first words of each paragraph."""
    return " / ".join(" ".join(f"{body} {ending}".split()[:PLAN_WORDS]) for body, ending in story)


def cut_paragraph(line: str) -> Paragraph | None:
    """The last sentences of a paragraph, or None when it has too few or its last one is no good ending."""
    sentences = _SENTENCE_END.sub(r"\1\n", line).split("\n")
    ending = sentences[-1]
    if not 3 <= len(ending.split()) <= MAX_ENDING_WORDS or not re.search(r"[.!?][\"')]*$", ending):
        return None
    body: list[str] = []
    num_words = len(ending.split())
    for sentence in reversed(sentences[:-1]):
        num_words += len(sentence.split())
        if body and num_words > MAX_PARAGRAPH_WORDS:
            break
        body.insert(0, sentence)
    joined = " ".join(body)
    return (joined, ending) if 4 <= len(joined.split()) <= MAX_PARAGRAPH_WORDS else None


def book_files(folder: Path, held_out: bool) -> list[Path]:
    """The books of ``corpus/`` for training, or those kept for evaluation."""
    files = sorted((folder / "corpus").glob("*.txt"))
    return [file for file in files if (file.stem in HELD_OUT_BOOKS) == held_out]
