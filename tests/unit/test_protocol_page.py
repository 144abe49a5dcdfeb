"""docs/protocol.md names every message, in its link, with every field in order."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from seedmp.draft_order import DraftOrder
from seedmp.ipc import codec, messages
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.token_tree.opt_tree import AdaptiveShape

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
REGISTERED = codec.registered()


def sections() -> dict[str, str]:
    """Text of the page below each message's heading, by tag."""
    parts = re.split(r"^### `([a-z-]+)`", PAGE.read_text(), flags=re.M)
    return {tag: re.split(r"^##? ", text, flags=re.M)[0] for tag, text in zip(parts[1::2], parts[2::2], strict=True)}


def table(section: str) -> list[tuple[str, str]]:
    """Fields and types of the section's table."""
    return re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, flags=re.M)


def test_all_messages_are_on_the_page_and_no_others() -> None:
    assert set(sections()) == set(REGISTERED)


@pytest.mark.parametrize("tag", sorted(REGISTERED))
def test_fields_stand_in_the_order_of_the_wire(tag: str) -> None:
    cls = REGISTERED[tag]
    section = sections()[tag]
    assert f"`{cls.__name__}`" in section.splitlines()[0]
    fields = [(field.name, str(field.type)) for field in dataclasses.fields(cls) if field.init]
    assert table(section) == fields


@pytest.mark.parametrize("record", [SamplingParams, DraftOrder, AdaptiveShape, RequestCounters])
def test_nested_records_are_described_too(record: type) -> None:
    text = PAGE.read_text().split("## Nested records")[1].split(f"### {record.__name__}\n")[1]
    fields = [(field.name, str(field.type)) for field in dataclasses.fields(record)]
    assert table(text.split("###")[0]) == fields


def test_the_page_is_of_this_protocol_version() -> None:
    assert f"`PROTOCOL_VERSION` is {messages.PROTOCOL_VERSION}" in PAGE.read_text()
