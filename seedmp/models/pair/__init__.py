"""The bundled models (MODEL_CARD.md): ``TARGET`` and ``DRAFT`` are folders that transformers loads,
``HEAD`` is an EAGLE-3 head of the target."""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).resolve().parent / "target"
DRAFT = Path(__file__).resolve().parent / "draft"
HEAD = Path(__file__).resolve().parent / "eagle3"
