"""Prompt lookup in the texts of other branches."""

from __future__ import annotations

from seedmp.methods.siblings import MAX_ENDED, SiblingTexts
from seedmp.token_tree.ngram import NgramShape

SHAPE = NgramShape(nodes=4, max_depth=4)
PROMPT = list(range(20, 40))


def test_a_live_sibling_says_what_may_follow() -> None:
    texts = SiblingTexts()
    assert len(texts.propose(0, [*PROMPT, 1, 2, 3, 4], SHAPE)) == 0
    assert texts.propose(1, PROMPT, SHAPE).token_ids == (1, 2, 3, 4)
    assert texts.propose(1, [*PROMPT, 9, 1, 2], SHAPE).token_ids == (3, 4)


def test_a_text_that_ended_is_remembered_for_a_while() -> None:
    texts = SiblingTexts()
    texts.end(0, [*PROMPT, 1, 2, 3])
    assert texts.propose(1, [*PROMPT, 1], SHAPE).token_ids == (2, 3)
    for branch_id in range(MAX_ENDED):
        texts.end(10 + branch_id, [*PROMPT, 5])
    assert 2 not in texts.propose(1, [*PROMPT, 1], SHAPE).token_ids


def test_strangers_are_not_looked_in() -> None:
    texts = SiblingTexts()
    texts.end(0, [19, *PROMPT, 1, 2, 3])
    assert len(texts.propose(1, [*PROMPT, 1], SHAPE)) == 0


def test_a_short_prompt_makes_siblings_too() -> None:
    texts = SiblingTexts()
    texts.end(0, [7, 8, 1, 2])
    assert texts.propose(1, [7, 8], SHAPE).token_ids == (1, 2)


def test_the_own_text_grows_and_is_looked_in_once() -> None:
    texts = SiblingTexts()
    texts.propose(0, [5, 6, 7], SHAPE)
    assert texts.propose(0, [5, 6, 7, 5], SHAPE).token_ids == (6, 7, 5)


def test_a_common_prefix_counts_once() -> None:
    """Ten siblings that share the prompt must not outvote what the branch itself said last."""
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, *PROMPT]
    texts = SiblingTexts()
    for branch_id in range(10):
        texts.end(branch_id, [*prompt, 50 + branch_id])
    own = [*prompt, 1, 9, 3, 1]
    assert texts.propose(99, own, NgramShape(nodes=1, max_depth=1)).token_ids in ((2,), (9,))
    both = texts.propose(99, own, NgramShape(nodes=2, max_depth=1)).token_ids
    assert set(both) == {2, 9}
