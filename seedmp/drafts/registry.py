"""The draft kinds by name."""

from __future__ import annotations

from seedmp.config import EngineConfig
from seedmp.drafts.base import DraftKind
from seedmp.registry import Registry

DRAFT_KINDS: Registry[type[DraftKind]] = Registry(
    "draft kind",
    {
        "none": "seedmp.drafts.none:NoDraft",
        "model": "seedmp.drafts.model:ModelDraft",
        "eagle-head": "seedmp.drafts.head:HeadDraft",
    },
    extends="seedmp.drafts.base:DraftKind",
)


def make_draft_kind(config: EngineConfig) -> DraftKind:
    """The draft kind that an engine's method names.

    Raises:
        ConfigError: there is none of this name; see ``Registry.load``.
    """
    return DRAFT_KINDS.load(config.method.draft_kind)(config)
