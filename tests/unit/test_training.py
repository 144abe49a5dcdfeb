"""The training script: documents are exact and true, packing and loss are right, a tiny run finishes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from recipes.pair import __main__ as pair
from recipes.pair import blocksworld, corpus, game24, prose
from recipes.pair import train as training
from recipes.pair.corpus import BOS, EOS, PAD, WINDOW, Encoder
from recipes.pair.documents import DECISION, GIVEN, RESULT, UNTRAINED, VALUE, Document
from recipes.pair.llama import Shape, build, hidden_states, weighted_loss
from seedmp.tasks.blocksworld import State, parse_state, shortest_plan_len
from seedmp.training import optimiser

TINY = Shape(hidden=64, layers=1, heads=1, inner=96)
STEP_LINE = {
    "id": "p1",
    "n_steps": 4,
    "init_text": "the red block is clear, the blue block is clear, the hand is empty, the red block is on "
    "top of the orange block, the blue block is on the table and the orange block is on the table",
    "goal_text": "the orange block is on top of the blue block",
}
SENTENCES = [
    "The {0} sat by the fire and thought about the long road home.",
    "It was a cold night, and the wind cried in the old {0} tree.",
    "Nobody had seen the little {0} since the morning.",
    "So the king gave the {0} a golden cup.",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one problem, one puzzle, a few questions and three short books."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("blocksworld", "game24", "gsm8k", "corpus", "creative_writing"):
        (folder / name).mkdir()
    for steps in (2, 4, 6, 8):
        (folder / "blocksworld" / f"step_{steps}.jsonl").write_text(json.dumps(STEP_LINE) + "\n")
    (folder / "game24" / "24.csv").write_text("Rank,Puzzles\n1,4 6 10 8\n")
    for name in ("train", "test"):
        records = [
            {"question": f"What is {n} + 1?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
            for n in range(9)
        ]
        (folder / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chance = random.Random(5)
    for book in ("first", "second", prose.HELD_OUT_BOOKS[0]):
        paragraphs = [
            " ".join(
                chance.choice(SENTENCES).format(chance.choice(["fox", "cat", "owl", "bear", "mole"])) for _ in range(n)
            )
            for n in (2, 3, 4, 3, 2) * 8
        ]
        (folder / "corpus" / f"{book}.txt").write_text("\n\n".join(paragraphs) + "\n")
    (folder / "creative_writing" / "inputs.txt").write_text("One day it rained. He ran home.\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Tokenizer:
    return corpus.train_tokenizer(data, seed=0)


# --- Blocksworld ---------------------------------------------------------------------------------


def read_plan(text: str) -> tuple[str, list[State], list[str], dict[int, str]]:
    """(goal, states, actions, label by state number) of a document; its lines must be exact."""
    lines = iter(text.split("\n"))
    assert next(lines) == "Blocksworld"
    goal = next(lines).removeprefix("Goal: ")
    states, actions, labels = [], [], {}
    for line in lines:
        name, _, rest = line.partition(": ")
        if name == "State":
            states.append(parse_state(rest))
            assert states[-1].text() == rest
        elif name == "Steps left":
            labels[len(states) - 1] = rest
        elif name == "Action":
            actions.append(rest)
        elif name == "Think":
            assert re.fullmatch(r"\w+ on \w+;( holding \w+;)? over \w+: [\w ]+; over \w+: [\w ]+", rest)
        else:
            assert line in ("Done", "")
    return goal, states, actions, labels


def check_plan(document: Document) -> None:
    goal, states, actions, labels = read_plan(document.text)
    assert len(states) == len(actions) + 1
    for before, action, after in zip(states, actions, states[1:], strict=False):
        assert before.after(action) == after
    for number, label in labels.items():
        steps = shortest_plan_len(states[number], goal)
        assert steps is not None and blocksworld.steps_label(steps) == label
    assert document.text.endswith("Done\n") == states[-1].reaches(goal)


def plans(seed: int, excluded: frozenset[tuple[State, blocksworld.Goal]] = frozenset()) -> Iterator[Document]:
    return blocksworld.BlocksworldSource(random.Random(seed), excluded).plans()


def test_every_plan_is_legal_and_its_labels_are_true() -> None:
    documents = list(islice(plans(1), 60))
    for document in documents:
        check_plan(document)
    assert any(document.text.endswith("Done\n") for document in documents)


def test_think_line_leads_to_the_action() -> None:
    state = parse_state(
        "the yellow block is clear, the hand is empty, the red block is on top of the orange block, the blue block is "
        "on top of the red block, the yellow block is on top of the blue block and the orange block is on the table"
    )
    goal = "the orange block is on top of the yellow block"
    (fact,) = blocksworld.open_goals(state, goal)
    assert blocksworld._think(state, fact) == "orange on yellow; over orange: red blue yellow; over yellow: none"
    action = blocksworld._action_for(state, fact)
    assert action == "unstack the yellow block from on top of the blue block"
    after = state.after(action)
    assert after is not None
    thought = "orange on yellow; holding yellow; over orange: red blue; over yellow: none"
    assert blocksworld._think(after, fact) == thought
    assert blocksworld._action_for(after, fact) == "put down the yellow block"


def test_a_goal_waits_for_its_support() -> None:
    state = parse_state(
        "the red block is on the table, the blue block is on the table and the orange block is on the table"
    )
    goal = "the red block is on top of the blue block and the blue block is on top of the orange block"
    assert blocksworld.open_goals(state, goal) == [("blue", "orange")]


def test_test_problems_occur_in_no_document() -> None:
    def visited(documents: Iterator[Document]) -> set[tuple[State, blocksworld.Goal]]:
        found = set()
        for document in islice(documents, 150):
            goal, states, _, _ = read_plan(document.text)
            found |= {(state, frozenset(blocksworld.goal_facts(goal))) for state in states}
        return found

    some = frozenset(sorted(visited(plans(2)), key=str)[::5])
    assert not visited(plans(2, some)) & some
    assert not visited(blocksworld.BlocksworldSource(random.Random(2), some).values()) & some


def test_excluded_problems_are_those_of_the_files(data: Path) -> None:
    ((state, goal),) = blocksworld.load_excluded(data)
    assert state.text() == STEP_LINE["init_text"]
    assert goal == {("orange", "blue")}


def test_values_are_true_labels() -> None:
    for document in islice(blocksworld.BlocksworldSource(random.Random(3), frozenset()).values(), 60):
        goal, states, actions, labels = read_plan(document.text)
        assert not actions and len(labels) == len(states)
        for number, label in labels.items():
            steps = shortest_plan_len(states[number], goal)
            assert steps is not None and blocksworld.steps_label(steps) == label
        assert [weight for text, weight in document.pieces if re.fullmatch(r" (\d|many)", text)] == [VALUE] * len(
            labels
        )


def test_only_shortest_actions_count_in_full() -> None:
    for document in islice(plans(4), 60):
        goal, states, _, _ = read_plan(document.text)
        weights = [weight for text, weight in document.pieces if text.startswith((" unstack", " stack", " p"))]
        for before, after, weight in zip(states, states[1:], weights, strict=False):
            steps = [shortest_plan_len(state, goal) for state in (before, after)]
            assert steps[0] is not None and steps[1] is not None
            assert weight == (DECISION if steps[1] < steps[0] else blocksworld.RANDOM_WEIGHT)


# --- Game of 24 ----------------------------------------------------------------------------------


def check_game(text: str) -> None:
    lines = text.splitlines()
    numbers = left = tuple(map(int, lines[0].removeprefix("Input: ").split()))
    assert list(left) == sorted(left)
    for line in lines[1:]:
        if line.startswith("Step: "):
            found = re.fullmatch(r"Step: (\d+ [-+*/] \d+) = (\d+) \(left: ([\d ]+)\)", line)
            assert found is not None
            after = tuple(map(int, found[3].split()))
            assert (found[1], int(found[2]), after) in game24.steps(left)
            left = after
        elif line.startswith("Judge: "):
            assert line == f"Judge: {game24.judgement(left)}"
        elif line.startswith("Answer: "):
            expression = line.removeprefix("Answer: ").removesuffix(" = 24")
            assert eval(expression) == 24
            assert sorted(map(int, re.findall(r"\d+", expression))) == list(numbers)
        else:
            assert line == "Done" and left == (24,)


def test_games_and_judgements_are_true() -> None:
    source = game24.Game24Source(random.Random(1), frozenset())
    games = [document.text for document in islice(source.games(), 300)]
    for text in [*games, *(document.text for document in islice(source.judgements(), 300))]:
        check_game(text)
    assert any("Answer:" in text for text in games)


def test_puzzles_are_never_an_input(data: Path) -> None:
    assert game24.load_excluded(data) == {(4, 6, 8, 10)}
    source = game24.Game24Source(random.Random(1), frozenset())
    common = frozenset(
        tuple(map(int, document.text.splitlines()[0].removeprefix("Input: ").split()))
        for document in islice(source.judgements(), 200)
    )
    source = game24.Game24Source(random.Random(1), common)
    for document in [*islice(source.judgements(), 200), *islice(source.games(), 100)]:
        assert tuple(map(int, document.text.splitlines()[0].removeprefix("Input: ").split())) not in common


@pytest.mark.parametrize(
    ("numbers", "path", "expression"),
    [
        ((4, 7, 8, 10), ["8 / 4", "10 - 7", "3 * 2"], "(10 - 7) * (8 / 4)"),
        ((1, 2, 3, 4), ["2 + 1", "3 + 3", "6 * 4"], "((2 + 1) + 3) * 4"),  # the made 3 before the given one
    ],
)
def test_answer_composes_the_steps(numbers: game24.Numbers, path: list[str], expression: str) -> None:
    assert game24.compose(numbers, path) == expression


def test_losing_steps_are_not_learnt() -> None:
    for document in islice(game24.Game24Source(random.Random(2), frozenset()).games(), 100):
        left = tuple(map(int, document.pieces[0][0].removeprefix("Input: ").split()))
        for (text, weight), (result, _) in zip(document.pieces, document.pieces[1:], strict=False):
            if re.fullmatch(r" \d+ [-+*/] \d+", text):
                after = tuple(map(int, result.partition("left: ")[2].rstrip(")\n").split()))
                wins = game24.solvable(left) and game24.solvable(after)
                assert weight == (DECISION if wins else UNTRAINED)
                left = after


# --- running text --------------------------------------------------------------------------------


def test_stories_keep_or_miss_their_endings_as_they_say(data: Path) -> None:
    library = prose.Library(prose.book_files(data, held_out=False), random.Random(1))
    kept_all, corrupted, planned = 0, 0, 0
    for document in islice(library.stories(), 80):
        request, *rest = document.text.rstrip("\n").split("\n")
        assert request.startswith("Write a story whose paragraphs end with these sentences: ")
        planned += rest[0].startswith("Plan: ")
        story = rest[rest.index("Story:") + 1 :]
        count = story.pop() if story[-1].startswith("Endings kept: ") else None
        if rest[0].startswith("Plan: "):
            assert rest[0].count(" / ") == len(story) - 1
        assert 2 <= len(story) <= 4
        if count is None:
            continue
        number = int(count.removeprefix("Endings kept: "))
        kept_all += number == len(story)
        corrupted += number < len(story)
        if number < len(story):
            assert (document.pieces[-4][1], document.pieces[-2][1]) == (UNTRAINED, VALUE)
        else:
            assert sum(weight == RESULT for _, weight in document.pieces) in (0, len(story))
    assert planned and kept_all and corrupted


def test_votes_have_the_true_plan_at_the_said_place(data: Path) -> None:
    library = prose.Library(prose.book_files(data, held_out=False), random.Random(1))
    for document in islice(library.votes(), 30):
        lines = document.text.rstrip("\n").split("\n")
        plan_lines = lines[1:-1]
        assert 2 <= len(plan_lines) <= 5
        for number, line in enumerate(plan_lines, 1):
            assert line.startswith(f"Plan {number}: ")
        assert lines[-1] in [f"Best plan: {number}" for number in range(1, len(plan_lines) + 1)]


def test_paragraphs_are_cut_to_their_last_sentences() -> None:
    long = "It was a very long day for all of them in the house. " * 9
    cut = prose.cut_paragraph(f"{long}Then he went home.")
    assert cut is not None
    assert cut[1] == "Then he went home."
    assert len(cut[0].split()) <= prose.MAX_PARAGRAPH_WORDS
    assert prose.cut_paragraph("CHAPTER ONE") is None
    assert prose.cut_paragraph("Mr. Fox said so.") is None


def test_gsm8k_has_no_calculator_marks(data: Path) -> None:
    document = next(prose.gsm8k_documents(data / "gsm8k" / "train.jsonl", random.Random(0)))
    assert re.fullmatch(r"Question: What is \d \+ 1\?\nAnswer: \d\+1=\d+\n#### \d+\n", document.text)


def test_held_out_books_are_apart(data: Path) -> None:
    assert [file.stem for file in prose.book_files(data, held_out=True)] == [prose.HELD_OUT_BOOKS[0]]
    assert [file.stem for file in prose.book_files(data, held_out=False)] == ["first", "second"]


# --- tokens --------------------------------------------------------------------------------------


def test_numbers_are_digits_and_newlines_stand_alone(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("left: 120\nDone\n").tokens
    at = tokens.index("Ġ1")
    assert tokens[at : at + 4] == ["Ġ1", "2", "0", "Ċ"]
    assert tokens[-1] == "Ċ"
    assert tokenizer.encode("x").ids[0] == BOS


def test_pieces_encode_as_the_whole_text(data: Path, tokenizer: Tokenizer) -> None:
    encode = Encoder(tokenizer)
    for name, documents in corpus.sources(data, seed=3).items():
        for document in islice(documents, 10):
            tokens, weights = encode(document)
            assert tokens.tolist() == [*tokenizer.encode(document.text).ids, EOS], name
            assert weights[0] == 0 and len(weights) == len(tokens)


def test_weights_follow_the_pieces(tokenizer: Tokenizer) -> None:
    document = Document([("Input: 3 8\n", GIVEN)], end_weight=UNTRAINED)
    document.add_label("Judge", "sure")
    tokens, weights = Encoder(tokenizer)(document)
    shown = [
        (tokenizer.decode([token]), weight / corpus.WEIGHT_UNIT) for token, weight in zip(tokens, weights, strict=True)
    ]
    assert [weight for text, weight in shown if text == " 3"] == [GIVEN]
    assert max(weights) == VALUE * corpus.WEIGHT_UNIT
    assert weights[-1] == 0


def test_windows_hold_whole_documents(data: Path, tokenizer: Tokenizer) -> None:
    mixture = {name: share for name, share in corpus.MIXTURE.items() if name != "prose"}
    windows = corpus.pack(corpus.sources(data, seed=1), Encoder(tokenizer), mixture, 12)
    for row, weights in zip(windows.tokens, windows.weights, strict=True):
        text = row[row != PAD]
        assert text[0] == BOS and text[-1] == EOS
        assert (text == BOS).sum() == (text == EOS).sum()
        assert not weights[row == PAD].any()


def test_mixture_is_kept(data: Path, tokenizer: Tokenizer) -> None:
    assert sum(corpus.MIXTURE.values()) == pytest.approx(1)
    windows = corpus.pack(corpus.sources(data, seed=1), Encoder(tokenizer), corpus.MIXTURE, 30)
    text = "".join(tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in windows.tokens)
    blocks = [part for part in text.split("<bos>") if part.startswith("Blocksworld")]
    share = sum(len(tokenizer.encode(part).ids) for part in blocks) / windows.tokens.size
    assert share == pytest.approx(corpus.MIXTURE["plans"] + corpus.MIXTURE["values"], abs=0.08)


# --- the model -----------------------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 16).bfloat16().float().requires_grad_()
    embedding = torch.randn(50, 16).bfloat16().float().requires_grad_()
    targets, weights = torch.randint(0, 50, (300,)), torch.rand(300)
    loss = weighted_loss(hidden, embedding, targets, weights)
    loss.backward()
    ours = [hidden.grad, embedding.grad]
    hidden.grad = embedding.grad = None
    plain = torch.nn.functional.cross_entropy(hidden @ embedding.T, targets, reduction="none")
    plain = (plain * weights).sum() / weights.sum()
    plain.backward()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=0.01)
    for mine, theirs in zip(ours, [hidden.grad, embedding.grad], strict=True):
        assert mine is not None and theirs is not None
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02


def test_a_sure_teacher_is_like_the_text() -> None:
    torch.manual_seed(0)
    hidden, embedding = torch.randn(20, 16).requires_grad_(), torch.randn(50, 16)
    targets = torch.randint(0, 50, (20,))
    teacher_logits = torch.nn.functional.one_hot(targets, 50) * 100.0
    losses = [weighted_loss(hidden, embedding, wanted, torch.ones(20)) for wanted in (targets, teacher_logits)]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-4)


def test_a_document_does_not_see_the_one_before() -> None:
    model = build(TINY).eval()
    tokens = torch.tensor([[BOS, 7, 8, 9, BOS, 10, 11, 12]])
    positions = torch.arange(8)[None] + 3
    together = hidden_states(model, tokens, positions)[:, 4:]
    alone = hidden_states(model, tokens[:, 4:], positions[:, 4:])
    assert torch.allclose(together, alone, atol=1e-5)
    as_shipped = model(input_ids=tokens[:, 4:]).logits @ torch.eye(corpus.VOCAB_SIZE)
    assert torch.allclose(as_shipped, alone @ model.model.embed_tokens.weight.T, atol=1e-4)


def test_newton_schulz_evens_singular_values() -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, 20, 40)
    values = torch.linalg.svdvals(optimiser.newton_schulz(stack).float())
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_learning_rate_ends_low() -> None:
    assert optimiser.rate_share(0.0, 1.0) == pytest.approx(1.0)
    assert optimiser.rate_share(1.0, 1.0) == pytest.approx(optimiser.LAST_RATE)


def test_tiny_run_learns_and_goes_on_from_its_checkpoint(
    data: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = corpus.pack(corpus.sources(data, 1), Encoder(tokenizer), corpus.MIXTURE, 4)
    windows.save(tmp_path / "windows")
    for name, some in corpus.held_out_windows(data, Encoder(tokenizer), 1).items():
        some.save(tmp_path / f"held-{name}")
    plan = training.Plan(
        shape=TINY,
        checkpoint=tmp_path / "tiny.pt",
        windows=(tmp_path / "windows",),
        shares=(1.0,),
        held_out=tmp_path,
        minutes=0.4 / 60,
        num_windows=1,
        num_ranks=1,
        compiled=False,
        log_seconds=0.05,
    )
    training.train(plan)
    first = torch.load(plan.checkpoint, weights_only=True)
    assert first["step"] >= 2 and first["tokens"] == first["step"] * WINDOW
    assert "held-out plans" in capsys.readouterr().out
    training.train(SimpleNamespace(**{**vars(plan), "minutes": 0.8 / 60}))  # type: ignore[arg-type]
    second = torch.load(plan.checkpoint, weights_only=True)
    assert second["step"] > first["step"]
    assert all(bool(torch.isfinite(weight).all()) for weight in second["model"].values())


def test_own_texts_are_packed_whole() -> None:
    texts = [[BOS, *[5] * n, EOS] for n in (100, 400, 300, 700)]
    windows = pair._pack_texts(texts, seed=0)
    assert windows.tokens.shape[1] == WINDOW
    assert int((windows.tokens == EOS).sum()) == 3  # the longest was cut
    assert windows.tokens.dtype == np.int16


def test_prompts_stop_where_the_model_goes_on(data: Path, tokenizer: Tokenizer) -> None:
    documents = corpus.sources(data, seed=1)
    for name, end in {"gsm8k": "?\n", "games": "\n", "plans": "\n", "stories": ".\n"}.items():
        tokens = tokenizer.encode(next(documents[name]).text, add_special_tokens=False).ids
        prompt = tokenizer.decode(pair._prompt(name, tokens, tokenizer))
        assert prompt.endswith(end)
        assert prompt.count("\n") == (3 if name == "plans" else 1)
