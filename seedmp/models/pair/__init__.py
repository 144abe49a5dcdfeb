"""The bundled models: ``TARGET`` and ``DRAFT`` are folders that transformers loads (MODEL_CARD.md)."""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).resolve().parent / "target"
DRAFT = Path(__file__).resolve().parent / "draft"
