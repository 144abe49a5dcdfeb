"""Figures that a paper printed, to stand beside ours; nothing here was measured by us.

SEED (arXiv 2406.18200), Table 1: speed-up over AR, LLaMA-68M drafting for LLaMA2-7B. Hardware, and what counts as
a token, are not stated. At k = (1, 1, 1) SD and MCSD are one algorithm, yet the table differs by up to 8 %.
"""

from __future__ import annotations

TASKS = ("creative_writing", "gsm8k", "blocksworld")
METHODS = ("sd", "sd-scheduled", "mcsd", "mcsd-scheduled")

# (temperature, k_config) -> method -> speed-up by task.
TABLE_1: dict[tuple[float, tuple[int, ...]], dict[str, tuple[float, float, float]]] = {
    (0.2, (1, 1, 1)): {
        "sd": (1.040, 1.208, 1.061), "sd-scheduled": (1.081, 1.256, 1.080),
        "mcsd": (1.046, 1.239, 1.054), "mcsd-scheduled": (1.079, 1.271, 1.081),
    },
    (0.2, (2, 2, 1)): {
        "sd": (1.203, 1.433, 1.171), "sd-scheduled": (1.265, 1.542, 1.294),
        "mcsd": (1.218, 1.439, 1.193), "mcsd-scheduled": (1.270, 1.550, 1.309),
    },
    (1.0, (1, 1, 1)): {
        "sd": (1.163, 1.157, 1.015), "sd-scheduled": (1.185, 1.276, 1.125),
        "mcsd": (1.156, 1.223, 1.099), "mcsd-scheduled": (1.179, 1.370, 1.156),
    },
    (1.0, (2, 2, 1)): {
        "sd": (1.454, 1.396, 1.328), "sd-scheduled": (1.492, 1.519, 1.364),
        "mcsd": (1.425, 1.409, 1.334), "mcsd-scheduled": (1.514, 1.557, 1.378),
    },
}  # fmt: skip


def speedup(task: str, temperature: float, k_config: tuple[int, ...], method: str) -> float | None:
    """The paper's speed-up; None where it has none (batched rounds are ours)."""
    if method == "ar":
        return 1.0
    cells = TABLE_1.get((temperature, k_config), {}).get(method)
    return cells[TASKS.index(task)] if cells is not None and task in TASKS else None
