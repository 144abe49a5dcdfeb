"""Observed texts against an exact law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from scipy import stats

Text = tuple[int, ...]


def pooled_p_value(seen: Counter[Text], law: Mapping[Text, float]) -> float:
    """Chi-square p-value; texts that are expected less than five times are pooled."""
    num = seen.total()
    common = [text for text, p in law.items() if p * num >= 5]
    observed = [seen[text] for text in common]
    expected = [law[text] * num for text in common]
    rest = num - sum(expected)
    if rest >= 1:
        observed.append(num - sum(observed))
        expected.append(rest)
    else:
        expected = list(np.asarray(expected) * sum(observed) / sum(expected))
    return float(stats.chisquare(observed, expected).pvalue)
