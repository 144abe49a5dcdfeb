"""Creative writing: sentences of a line, endings that count, prompts word for word, votes."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedmp.errors import ConfigError
from seedmp.search.task import Chat
from seedmp.tasks.creative_writing import (
    EXAMPLES,
    CreativeWriting,
    CreativeWritingChat,
    CreativeWritingProblem,
    endings_kept,
    load_creative_writing,
    split_sentences,
)
from tests.helpers.paths import walk

SENTENCES = ("The door was open.", "Nobody had seen the cat.", "She didn’t go.", "It began to snow.")
PROBLEM = CreativeWritingProblem(SENTENCES)
REQUEST = (
    "Write a story whose paragraphs end with these sentences: "
    "The door was open. Nobody had seen the cat. She didn't go. It began to snow."
)
STORY = (
    "I came home. The door was open.\nWe asked. Nobody had seen the cat.\nOh. She didn't go.\nCold. It began to snow."
)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        (" ".join(SENTENCES), SENTENCES),
        ("He fell off guard. Why not? No! 3 cats sat.", ("He fell off guard.", "Why not?", "No!", "3 cats sat.")),
        (
            'People say "orange" but I prefer "pink". He left. "Go!" she said. Mr. Fox ran.',
            ('People say "orange" but I prefer "pink".', "He left.", '"Go!" she said.', "Mr. Fox ran."),
        ),
        (  # a published line: a fragment without a period
            "It was dangerous with him. The heat He picked up trash. We sat with Grandpa Joe here.",
            ("It was dangerous with him.", "The heat", "He picked up trash.", "We sat with Grandpa Joe here."),
        ),
    ],
)  # fmt: skip
def test_sentences_of_a_line(line: str, sentences: tuple[str, ...]) -> None:
    assert split_sentences(line) == sentences


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "inputs.txt"
    file.write_text(" ".join(SENTENCES) + "\n\n" + EXAMPLES[0] + "\n", encoding="utf-8")
    assert load_creative_writing(file)[0] == PROBLEM
    assert len(load_creative_writing(file)) == 2
    assert len(load_creative_writing(file, 1)) == 1
    assert [len(problem.sentences) for problem in load_creative_writing()] == [4] * len(EXAMPLES)
    for text, message in (
        ("one sentence only.\n", r"inputs\.txt, line 1: .*1 sentence\(s\) in the line: must be four"),
        (" ".join(SENTENCES) + "\n" + "Oh. " * 12, "line 2: .*12 sentence"),
        ("", "no problems"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_creative_writing(file)
    with pytest.raises(ConfigError, match="limit=0"):
        load_creative_writing(None, 0)


@pytest.mark.parametrize(
    ("passage", "kept"),
    [
        (STORY, 4),
        (STORY.replace("\n", "\n\n").replace("'", "’"), 4),
        (STORY.replace("The door was open.", "The  door was\topen. "), 4),
        (STORY.replace("the cat.", "the cats."), 3),
        (STORY.replace("the cat.", "the cat. Then we slept."), 3),
        (STORY.replace("The door was open.", "the door was open."), 3),
        ("A heading\n" + STORY, 0),
        ("", 0),
        (SENTENCES[0], 1),
        ("AThe door was open.", 0),
    ],
)
def test_endings(passage: str, kept: int) -> None:
    assert endings_kept(passage, SENTENCES) == kept
    task = CreativeWriting()
    if passage:
        path = walk(task, PROBLEM, " plan", passage)
        assert task.score(PROBLEM, path) == {"endings_kept": kept, "num_endings": 4}
        assert task.is_correct(PROBLEM, path) is (kept == 4)


def test_further_paragraphs_are_not_right() -> None:
    task = CreativeWriting()
    path = walk(task, PROBLEM, " plan", STORY + "\nAnd so on.")
    assert task.score(PROBLEM, path)["endings_kept"] == 4
    assert not task.is_correct(PROBLEM, path)
    assert not task.is_correct(PROBLEM, path[:1])
    assert task.score(PROBLEM, path[:1])["endings_kept"] == 0


def test_prompts_of_the_bundled_pair() -> None:
    task = CreativeWriting()
    plans = [walk(task, PROBLEM, f" plan {letter} / b / c / d\nStory:") for letter in "xyz"]
    assert task.thought_ask(PROBLEM, []).prompt == f"{REQUEST}\nPlan:"
    story = f"{REQUEST}\nPlan: plan x / b / c / d\nStory:\n"
    assert task.thought_ask(PROBLEM, plans[0]).prompt == story
    vote = task.vote_ask(PROBLEM, plans)
    assert vote.prompt == (
        f"{REQUEST}\nPlan 1: plan x / b / c / d\nPlan 2: plan y / b / c / d\nPlan 3: plan z / b / c / d\nBest plan:"
    )
    assert vote.choices == (" 1", " 2", " 3")
    path = walk(task, PROBLEM, " plan x / b / c / d", STORY + "\nEndings kept: 3")
    assert path[1].text == STORY
    assert [thought.is_final for thought in path] == [False, True]
    value = task.value_ask(PROBLEM, path)
    assert value.prompt == f"{story}{STORY}\nEndings kept:"
    assert value.choices == (" 0", " 1", " 2", " 3", " 4")
    assert [task.read_value(choice) for choice in value.choices] == [0, 1, 2, 3, 4]
    assert [task.defaults.evaluate_at(depth) for depth in (1, 2, 3)] == ["vote", "score", "score"]
    with pytest.raises(ConfigError, match="votes on plans only"):
        task.vote_ask(PROBLEM, [path, path])
    with pytest.raises(ConfigError, match="plans are valued by vote"):
        task.value_ask(PROBLEM, path[:1])
    for text in ("", "\nplan"):
        assert task.read_thought(PROBLEM, [], text) is None
    assert task.read_thought(PROBLEM, path[:1], "\n") is None


@pytest.mark.parametrize(
    ("text", "index"),
    [(" 2", 1), ("2.", 1), ("Plan 3", 2), ("The best choice is **1**.", 0), ("4", None), ("0", None), ("1 or 2", None),
     ("none", None), ("", None), ("2, not 2", 1)],
)  # fmt: skip
def test_votes(text: str, index: int | None) -> None:
    for task in (CreativeWriting(), CreativeWritingChat()):
        assert task.read_vote(text, 3) == index


def test_chat_prompts() -> None:
    task = CreativeWritingChat()
    path = walk(task, PROBLEM, " one / two", f"**Passage:**\n{STORY}")
    assert path[1].text == STORY.replace("\n", "\n\n")
    first, second = task.thought_ask(PROBLEM, []), task.thought_ask(PROBLEM, path[:1])
    assert isinstance(first.prompt, Chat)
    assert isinstance(second.prompt, Chat)
    assert "1. The door was open.\n2. Nobody" in first.prompt.messages[0][1]
    assert second.prompt.messages[:2] == (*first.prompt.messages, ("assistant", "Plan: one / two"))
    for paths, kind in (([path[:1]] * 5, "plan"), ([path] * 5, "passage")):
        vote = task.vote_ask(PROBLEM, paths)
        assert isinstance(vote.prompt, Chat)
        assert f"{kind.capitalize()} 5:\n{paths[0][-1].text}" in vote.prompt.messages[0][1]
        assert vote.prompt.answer_prefix == f"The best {kind} is"
        assert vote.choices == (" 1", " 2", " 3", " 4", " 5")
    with pytest.raises(ConfigError, match="valued by vote"):
        task.value_ask(PROBLEM, path)


def test_chat_thoughts() -> None:
    task = CreativeWritingChat()
    for text in ("Plan: a\nb", "**Plan:** a b", "a\n\nb\nPassage:\nIt was", "a b"):
        assert walk(task, PROBLEM, text)[0].text == "a b"
    for text in ("", " \n", "Plan:", "..."):
        assert task.read_thought(PROBLEM, [], text) is None
