"""Any two scans in, a transform out: `register`, in Python and on the command line.

The names are imported when they are first used, so that the command answers `--help` at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dio_lightning.registration.pipeline import Stage, register
    from dio_lightning.registration.result import Registration
    from dio_lightning.registration.scan import Scan

__all__ = ["Registration", "Scan", "Stage", "register"]

_HOMES = {"Registration": "result", "Scan": "scan", "Stage": "pipeline", "register": "pipeline"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
