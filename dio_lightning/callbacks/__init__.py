"""Lightning callbacks: scores, pictures and files."""

from dio_lightning.callbacks.budget import TimeBudget
from dio_lightning.callbacks.checkpoints import Best, Last
from dio_lightning.callbacks.html_report import Report
from dio_lightning.callbacks.panels import Panels
from dio_lightning.callbacks.progress import ProgressLines, TrainingBar
from dio_lightning.callbacks.random_states import RandomStates
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.callbacks.signals import StopAtSignal
from dio_lightning.callbacks.step_cost import StepCost
from dio_lightning.callbacks.writer import FieldWriter
from dio_lightning.files import replacing, write_atomic

__all__ = [
    "Best",
    "FieldWriter",
    "Last",
    "Panels",
    "ProgressLines",
    "RandomStates",
    "RegistrationScores",
    "Report",
    "StepCost",
    "StopAtSignal",
    "TimeBudget",
    "TrainingBar",
    "replacing",
    "write_atomic",
]
