"""Text up to a stop string: what a user gets of a request that a stop string ended."""

from __future__ import annotations


def cut_at_stop(text: str, stop: str) -> str:
    """``text`` up to the first occurrence of ``stop``."""
    return text[: text.find(stop)] if stop and stop in text else text
