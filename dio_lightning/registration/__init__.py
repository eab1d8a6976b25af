"""Any two scans in, a transform out: `register`, in Python and on the command line."""

from dio_lightning.registration.pipeline import Stage, register
from dio_lightning.registration.result import Registration
from dio_lightning.registration.scan import Scan

__all__ = ["Registration", "Scan", "Stage", "register"]
