"""Worker names as text and back."""

from __future__ import annotations

import pytest

from seedmp.ids import Incarnation, WorkerName


@pytest.mark.parametrize("name", [WorkerName(0), WorkerName(12), WorkerName(0, 0), WorkerName(3, 17)])
def test_names_survive_text(name: WorkerName) -> None:
    assert WorkerName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["", "supervisor", "verifier-", "verifier-0.1", "draft-0", "draft-0.", "draft-a.0"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no worker"):
        WorkerName.parse(text)


@pytest.mark.parametrize("incarnation", [Incarnation(WorkerName(0), 0), Incarnation(WorkerName(2, 11), 30)])
def test_incarnations_survive_text(incarnation: Incarnation) -> None:
    assert Incarnation.parse(str(incarnation)) == incarnation


@pytest.mark.parametrize("text", ["", "engine", "draft-0.1", "draft-0-1-", "draft-0.1-x", "verifier-0", "draft-0-1-2"])
def test_other_text_names_no_incarnation(text: str) -> None:
    with pytest.raises(ValueError, match="names no"):
        Incarnation.parse(text)
