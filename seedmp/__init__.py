"""seedmp: reasoning trees from one target model and several draft processes.

Public names are loaded on first use, so that ``import seedmp`` is cheap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# In a checkout ipc/ and workers/ lie beside this folder and import as seedmp.ipc and seedmp.workers.
_checkout = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if os.path.isfile(os.path.join(_checkout, "setup.cfg")):
    __path__.append(_checkout)

__version__ = "0.1.0"

_PUBLIC = {
    "AsyncEngine": "seedmp.async_engine",
    "Branch": "seedmp.branch",
    "Engine": "seedmp.engine",
    "EngineConfig": "seedmp.config",
    "RequestHandle": "seedmp.request",
    "RequestOutput": "seedmp.request",
    "SamplingParams": "seedmp.sampling",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from seedmp.async_engine import AsyncEngine as AsyncEngine
    from seedmp.branch import Branch as Branch
    from seedmp.config import EngineConfig as EngineConfig
    from seedmp.engine import Engine as Engine
    from seedmp.request import RequestHandle as RequestHandle
    from seedmp.request import RequestOutput as RequestOutput
    from seedmp.sampling import SamplingParams as SamplingParams
else:

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
