"""Positions whose angles depend on how long a text is: from which length on, and whose length counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeBorder:
    """Of a model with longrope, dynamic NTK or another scaling by length.

    The length is that of the request's own text: a row at position p has the angles of a text of
    ``max(p + 1, rope_len)`` tokens. KV of unequal ``rope_len`` is of unequal kind and is never shared.

    Args:
        length: up to so many tokens the angles are the ordinary ones.
        recomputes: a text that grows over the border is computed anew with the other angles, as such a model's
            ``generate`` does. Else each token keeps the angles that it was computed with.
    """

    length: int
    recomputes: bool

    def rope_len(self, prompt_len: int, num_tokens: int) -> int:
        """Least length whose angles the rows of a text have; 0 are the ordinary ones.

        Args:
            prompt_len: tokens of the prompt.
            num_tokens: of the text so far.
        """
        if self.recomputes:
            return self.length + 1 if num_tokens > self.length else 0
        return prompt_len if prompt_len > self.length else 0

    def room(self, num_tokens: int) -> int | None:
        """How deep a token tree may be below a text, or None: KV of one forward is of one kind."""
        return self.length - num_tokens if self.recomputes and num_tokens <= self.length else None
