"""Rule B, target sample: the target draws its own token; a child is accepted iff it is that token.

The walk is rule A's (``greedy.follow_target``). With noise addressed by position the text is
the one that plain sampling with the same seed gives, whatever was drafted.
"""

from __future__ import annotations

from seedmp.decoding.accept import TARGET_SAMPLE, AcceptRule, TargetPass, Verdict
from seedmp.decoding.greedy import follow_target


class TargetSampleRule(AcceptRule):
    """Rule B, for any tree at any temperature."""

    name = TARGET_SAMPLE

    def judge(self, seen: TargetPass) -> Verdict:
        return Verdict(*follow_target(seen.tree, seen.target_token))
