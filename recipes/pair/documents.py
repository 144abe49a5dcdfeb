"""What a training document is: text in pieces, each with the weight of its tokens in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

# Weights of the kinds of text. What a search asks for counts most; what it gives counts little.
GIVEN, CONNECTING, PLAIN, RESULT, DECISION, VALUE = 0.1, 0.3, 1.0, 1.5, 2.0, 3.0
UNTRAINED = 0.0


@dataclass
class Document:
    """One document; its tokens are ``<bos>``, the pieces and ``<eos>``.

    Attributes:
        pieces: (text, weight of its tokens). Each piece ends with a newline or is followed by one that
            begins with a blank or a newline, so that pieces can be encoded apart.
        end_weight: weight of ``<eos>``; 0 where the document stops before its matter ends.
    """

    pieces: list[tuple[str, float]] = field(default_factory=list)
    end_weight: float = PLAIN

    def add(self, text: str, weight: float) -> None:
        """Append a piece."""
        self.pieces.append((text, weight))

    def add_label(self, question: str, label: str) -> None:
        """Append a line ``question: label`` in which the label counts most."""
        self.pieces += [(f"{question}:", GIVEN), (f" {label}", VALUE), ("\n", GIVEN)]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for text, _ in self.pieces)
