"""What the stages of a registration did, for its report."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dio_lightning.layers import Observer, Record
from dio_lightning.modules import IterativeModule, RegistrationModule
from dio_lightning.reports.curves import Curves


class Parts:
    """What a stage says that it is doing, and how long each of these took.

    Args:
        tell: is given what this is told.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._began = tell, list[tuple[str, float]]()

    def __call__(self, text: str) -> None:
        """Note the beginning of a part."""
        self._began.append((text, time.perf_counter()))
        self._tell(text)

    def report(self) -> list[dict[str, Any]]:
        """Every part and its seconds; the last one ends now."""
        ends = [began for _, began in self._began[1:]] + [time.perf_counter()]
        return [{"part": text, "seconds": end - began} for (text, began), end in zip(self._began, ends, strict=True)]


class Journal:
    """An observer of a solve that keeps the curves of every level, and what the layer says of its solutions.

    Args:
        observe: another observer, which is given every record too.
    """

    def __init__(self, observe: Observer | None = None) -> None:
        self.curves = Curves(observe)
        self._solved = list[dict[str, Any]]()

    def __call__(self, record: Record) -> None:
        """Note one state; only the first sample of a batch counts."""
        self.curves(record)

    @contextmanager
    def reading(self, module: RegistrationModule) -> Iterator[None]:
        """Read what the module's layer, if it has one, returns."""
        if not isinstance(module, IterativeModule):
            yield
            return
        hook = module.layer.register_forward_hook(self._note)
        try:
            yield
        finally:
            hook.remove()

    def levels(self) -> list[dict[str, Any]]:
        """Coarse to fine: steps, whether the stop rule fired, the relative residual, the energy at start and end."""
        energies = [self.curves.energy.get(level["level"]) for level in self._solved]
        return [
            {**level, "energy": {"start": values[0], "end": values[-1]}} if values else level
            for level, values in zip(self._solved, energies, strict=True)
        ]

    def _note(self, layer: object, arguments: object, solutions: Any) -> None:  # noqa: ANN401
        """What torch calls after a layer, with what it returned: a `Solution` a level."""
        self._solved = [
            {
                "level": index,
                "steps": int(solution.steps[0]),
                "converged": bool(solution.converged[0]),
                "failed": bool(solution.failed[0]),
                "residual": float(solution.residual[0]),
            }
            for index, solution in enumerate(solutions)
        ]


def energy_of(record: Record) -> float | None:
    """The energy of the first sample at a state, where f showed one."""
    energy = None if record.evaluation is None else record.evaluation.energy
    return None if energy is None else float(energy[0])
