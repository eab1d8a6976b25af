"""Lightning callbacks: scores, pictures and files."""

from dio_lightning.callbacks.files import replacing, write_atomic
from dio_lightning.callbacks.panels import Panels
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.callbacks.writer import FieldWriter

__all__ = ["FieldWriter", "Panels", "RegistrationScores", "replacing", "write_atomic"]
