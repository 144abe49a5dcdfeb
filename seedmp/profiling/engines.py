"""Profiles of all engines that a piece of code opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from seedmp.client.observers import ObservedEngine, observing
from seedmp.profiling.profile import Profile
from seedmp.profiling.sampler import PERIOD_S
from seedmp.reporting.output import check_folder


@contextmanager
def profile_engines(folder: str | os.PathLike[str], *, period_s: float = PERIOD_S) -> Iterator[list[Profile]]:
    """Profile every engine that is opened inside, each until it is closed: the first into ``folder``, others below it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = check_folder(folder)
    profiles: list[Profile] = []

    def opened(engine: ObservedEngine) -> Callable[[], None]:
        place = path if not profiles else path / f"engine-{len(profiles) + 1}"
        profile = Profile(engine, place, period_s=period_s)
        profiles.append(profile)
        profile.__enter__()
        return profile.stop

    try:
        with observing(opened):
            yield profiles
    finally:
        for profile in profiles:
            profile.stop()
