"""What a trained pair can do: loss, agreement of draft and target, quick solve rates.

The solve rates here are of plain chains of thought, enough to see that a format is learnt; searches
over trees of thoughts are measured elsewhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from recipes.pair import game24, prose
from recipes.pair.blocksworld import MANY
from recipes.pair.corpus import BOS, EOS, PAD, Windows
from recipes.pair.train import token_losses
from seedmp.tasks.blocksworld import evaluation_prompt, load_blocksworld, parse_state, shortest_plan_len, thought_prompt
from seedmp.tasks.gsm8k import load_gsm8k

STORY_PROMPT_TOKENS = 60  # of a held-out book, to be continued


@torch.no_grad()
def generate(
    model: Any,
    prompts: list[list[int]],
    max_new: int,
    temperature: float,
    is_done: Callable[[list[int]], bool],
    chance: torch.Generator,
) -> list[list[int]]:
    """Continue all prompts together; temperature 0 takes the likeliest token.

    Args:
        prompts: token ids, each beginning with ``<bos>``.
        is_done: whether these new tokens are complete; ``<eos>`` ends a text in any case.

    Returns:
        the new tokens, without ``<eos>``.
    """
    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    new: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    cache = None
    for _ in range(max_new):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].float()
        if temperature:
            chosen = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=chance)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        for idx, token in enumerate(chosen[:, 0].tolist()):
            if going[idx] and token != EOS:
                new[idx].append(token)
                going[idx] = not is_done(new[idx])
            else:
                going[idx] = False
        if not any(going):
            break
        tokens, positions = chosen, positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(chosen)], 1)
    return new


def held_out_losses(model: Any, folder: Path) -> dict[str, float]:
    """Mean loss in nats of the trained tokens of each kind of held-out document."""
    found = {}
    for file in sorted(folder.glob("held-*-tokens.npy")):
        name = file.name.removeprefix("held-").removesuffix("-tokens.npy")
        some = Windows.load(folder / f"held-{name}")
        losses = token_losses(model, torch.from_numpy(some.tokens.astype("int64")))
        found[name] = float(losses[torch.from_numpy(some.weights[:, 1:] > 0)].mean())
    return found


class PairEvaluation:
    """The target, and the draft where there is one, on prompts that were not trained on.

    Args:
        target, draft: ``LlamaForCausalLM`` in the precision they are shipped in, or float32.
        tokenizer: of both.
        data: folder with gsm8k/, corpus/, blocksworld/, game24/ and creative_writing/.
        seed: of the prompts and the sampling.
    """

    def __init__(self, target: Any, draft: Any | None, tokenizer: Tokenizer, data: Path, seed: int = 0) -> None:
        self.target, self.draft, self.tokenizer, self.data = target, draft, tokenizer, data
        self._seed = seed

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, after ``<bos>``."""
        return [BOS, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def prompts(self, count: int) -> dict[str, list[list[int]]]:
        """Token ids of ``count`` prompts of each domain."""
        chance = random.Random(self._seed)
        folder = self.data / "blocksworld"
        blocks = [*load_blocksworld(folder / "step_4.jsonl"), *load_blocksworld(folder / "step_6.jsonl")]
        gsm8k = load_gsm8k(self.data / "gsm8k" / "test.jsonl")
        library = prose.Library(prose.book_files(self.data, held_out=True), chance)
        stories = [document.text.split("\nStory:\n")[0] for document in islice(library.stories(), count)]
        lines = (self.data / "creative_writing" / "inputs.txt").read_text(encoding="utf-8").splitlines()
        creative = [prose.story_request([line.strip().replace("’", "'")]).strip() for line in lines[:count]]
        puzzles = chance.sample(sorted(game24.load_excluded(self.data)), count)
        return {
            "gsm8k": [self.encode(problem.prompt) for problem in chance.sample(gsm8k, count)],
            "held-out stories": [self.encode(f"{text}\nStory:\n") for text in stories],
            "creative writing": [self.encode(f"{text}\nStory:\n") for text in creative],
            "held-out prose": [
                self.encode(document.text)[:STORY_PROMPT_TOKENS] for document in islice(library.passages(), count)
            ],
            "blocksworld": [self.encode(problem.thought_prompt) for problem in chance.sample(blocks, count)],
            "game24": [self.encode(f"Input: {' '.join(map(str, numbers))}\n") for numbers in puzzles],
        }

    @torch.no_grad()
    def agreement(self, temperature: float, count: int = 30, max_new: int = 100) -> dict[str, float]:
        """Mean over positions of sum(min(target_probs, draft_probs)) on text the target continues.

        This is the probability that one draft token is accepted.
        """
        assert self.draft is not None
        chance = torch.Generator().manual_seed(self._seed)
        found = {}
        for name, prompts in self.prompts(count).items():
            texts = generate(self.target, prompts, max_new, temperature, lambda new: False, chance)
            overlap, num = 0.0, 0
            for prompt, new in zip(prompts, texts, strict=True):
                if not new:
                    continue
                tokens = torch.tensor([prompt + new])
                laws = [
                    torch.softmax(model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float() / temperature, -1)
                    for model in (self.target, self.draft)
                ]
                overlap += float(torch.minimum(*laws).sum())
                num += len(new)
            found[name] = overlap / max(num, 1)
        return found

    def blocksworld_chains(self, name: str, count: int, extra_steps: int = 0) -> dict[str, float]:
        """Greedy chains on ``step_N`` problems; the plan is executed by the simulator.

        Returns:
            shares: solved, legal actions, states written exactly (both per thought).
        """
        problems = load_blocksworld(self.data / "blocksworld" / f"{name}.jsonl")[:count]
        true = [parse_state(problem.init_text) for problem in problems]
        shown = [problem.init_text for problem in problems]
        solved, alive = [False] * len(problems), [True] * len(problems)
        num_thoughts = num_legal = num_exact = 0
        newline = self.encode("\n")[1]
        for _ in range(max(problem.num_steps or 0 for problem in problems) + extra_steps):
            going = [idx for idx in range(len(problems)) if alive[idx] and not solved[idx]]
            if not going:
                break
            prompts = [self.encode(thought_prompt(problems[idx].goal_text, shown[idx])) for idx in going]
            texts = generate(
                self.target, prompts, 160, 0.0, lambda new: new.count(newline) >= 3, torch.Generator()
            )  # fmt: skip
            for idx, tokens in zip(going, texts, strict=True):
                lines = self.tokenizer.decode(tokens).split("\n")
                num_thoughts += 1
                after = true[idx].after(lines[1].removeprefix("Action:")) if len(lines) > 2 else None
                if after is None:
                    alive[idx] = False
                    continue
                num_legal += 1
                true[idx], shown[idx] = after, lines[2].removeprefix("State:").strip()
                num_exact += shown[idx] == after.text()
                solved[idx] = after.reaches(problems[idx].goal_text)
        return {
            "solved": sum(solved) / len(problems),
            "legal": num_legal / max(num_thoughts, 1),
            "exact": num_exact / max(num_legal, 1),
        }

    @torch.no_grad()
    def blocksworld_values(self, count: int) -> dict[str, float]:
        """``Steps left`` of the published problems' states and of random successors, against the truth."""
        chance = random.Random(self._seed)
        problems = [
            problem for n in (2, 4, 6, 8) for problem in load_blocksworld(self.data / "blocksworld" / f"step_{n}.jsonl")
        ]
        labels = [self.encode(f"\n {text}")[-1] for text in [*map(str, range(MANY)), "many"]]
        wanted, given, closer = [], [], []
        for problem in chance.sample(problems, count):
            state = parse_state(problem.init_text)
            for _ in range(chance.randint(0, 3)):
                state = chance.choice([after for _, after in state.successors()])
            values = []
            siblings = list(state.successors())
            for _, after in chance.sample(siblings, min(2, len(siblings))):
                prompt = self.encode(evaluation_prompt(problem.goal_text, after.text()))
                logits = self.target(input_ids=torch.tensor([prompt])).logits[0, -1, labels].float()
                value = float(torch.softmax(logits, -1) @ torch.arange(MANY + 1.0))
                steps = shortest_plan_len(after, problem.goal_text)
                assert steps is not None
                values.append((min(steps, MANY), value))
            wanted += [steps for steps, _ in values]
            given += [value for _, value in values]
            if len(values) == 2 and values[0][0] != values[1][0]:
                closer.append((values[0][0] < values[1][0]) == (values[0][1] < values[1][1]))
        pair = torch.tensor([wanted, given])
        return {
            "correlation": float(torch.corrcoef(pair)[0, 1]),
            "mean error": float((pair[0] - pair[1]).abs().mean()),
            "better sibling found": sum(closer) / max(len(closer), 1),
        }

    def game24_chains(self, count: int) -> dict[str, float]:
        """Greedy games of published puzzles: solved, and steps that are right."""
        puzzles = sorted(game24.load_excluded(self.data))[:: 681 // count][:count]
        prompts = [self.encode(f"Input: {' '.join(map(str, numbers))}\n") for numbers in puzzles]
        texts = generate(self.target, prompts, 120, 0.0, lambda new: False, torch.Generator())
        num_solved = num_steps = num_right = 0
        for numbers, tokens in zip(puzzles, texts, strict=True):
            left = numbers
            for line in self.tokenizer.decode(tokens).split("\n"):
                if not line.startswith("Step: "):
                    continue
                num_steps += 1
                for step, result, after in game24.steps(left):
                    if line == f"Step: {step} = {result} (left: {' '.join(map(str, after))})":
                        num_right += 1
                        left = after
                        break
                else:
                    break
            num_solved += left == (game24.GOAL,)
        return {"solved": num_solved / count, "right steps": num_right / max(num_steps, 1)}

    @torch.no_grad()
    def game24_judge(self, count: int) -> dict[str, float]:
        """Accuracy of ``Judge`` after one random step from published puzzles, and of always saying the commoner."""
        chance = random.Random(self._seed)
        words = ["sure", "likely", "impossible"]
        labels = [self.encode(f"\n {word}")[-1] for word in words]
        right, impossible = 0, 0
        for numbers in chance.sample(sorted(game24.load_excluded(self.data)), count):
            step, result, left = chance.choice(game24.steps(numbers))
            shown = " ".join(map(str, left))
            text = f"Input: {' '.join(map(str, numbers))}\nStep: {step} = {result} (left: {shown})\nJudge:"
            logits = self.target(input_ids=torch.tensor([self.encode(text)])).logits[0, -1, labels]
            right += words[int(logits.argmax())] == game24.judgement(left)
            impossible += game24.judgement(left) == "impossible"
        return {"right": right / count, "always the commoner": max(impossible, count - impossible) / count}


def report(evaluation: PairEvaluation, held_out: Path, count: int) -> dict[str, Any]:
    """All figures, printed as they come."""
    found: dict[str, Any] = {}

    def note(name: str, figures: dict[str, float]) -> None:
        found[name] = {key: round(value, 3) for key, value in figures.items()}
        print(f"{name}: {json.dumps(found[name])}", flush=True)

    note("target loss", held_out_losses(evaluation.target, held_out))
    for name in ("step_2", "step_4", "step_6"):
        note(f"greedy chains {name}", evaluation.blocksworld_chains(name, count))
    note("steps left", evaluation.blocksworld_values(4 * count))
    note("game24 greedy", evaluation.game24_chains(count))
    note("judge", evaluation.game24_judge(4 * count))
    if evaluation.draft is not None:
        note("draft loss", held_out_losses(evaluation.draft, held_out))
        for temperature in (1.0, 0.2):
            note(f"agreement at {temperature}", evaluation.agreement(temperature, count))
    return found
