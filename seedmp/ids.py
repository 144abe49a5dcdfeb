"""Names of worker processes and of their incarnations."""

from __future__ import annotations

from dataclasses import dataclass

VERIFIER, DRAFT = "verifier", "draft"


@dataclass(frozen=True)
class WorkerName:
    """Which worker of an engine: the verifier of a group, or one of its drafts.

    Args:
        group: index of the group, from 0.
        draft: index of the draft in its group, from 0; None is the verifier.

    As text it is ``verifier-GROUP`` or ``draft-GROUP.DRAFT``.
    """

    group: int
    draft: int | None = None

    def __str__(self) -> str:
        return f"{VERIFIER}-{self.group}" if self.draft is None else f"{DRAFT}-{self.group}.{self.draft}"

    @classmethod
    def parse(cls, text: str) -> WorkerName:
        """The inverse of ``str``.

        Raises:
            ValueError: the text names no worker.
        """
        kind, _, rest = text.partition("-")
        group, dot, draft = rest.partition(".")
        if kind == VERIFIER and not dot and group.isdecimal():
            return cls(int(group))
        if kind == DRAFT and group.isdecimal() and draft.isdecimal():
            return cls(int(group), int(draft))
        raise ValueError(f"{text!r} names no worker: expected verifier-GROUP or draft-GROUP.DRAFT")


@dataclass(frozen=True)
class Incarnation:
    """One process of a worker: a replacement has the next epoch.

    As text it is ``NAME-EPOCH``: the name of its span ring, and the beginning of a draft's socket's.
    """

    worker: WorkerName
    epoch: int

    def __str__(self) -> str:
        return f"{self.worker}-{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> Incarnation:
        """The inverse of ``str``.

        Raises:
            ValueError: the text names no incarnation of a worker.
        """
        name, _, epoch = text.rpartition("-")
        if not epoch.isdecimal():
            raise ValueError(f"{text!r} names no incarnation of a worker: expected NAME-EPOCH")
        return cls(WorkerName.parse(name), int(epoch))
