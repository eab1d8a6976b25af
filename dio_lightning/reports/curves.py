"""How a solve went: residual and energy of every step, level by level."""

from dataclasses import dataclass, field

from dio_lightning.layers import Observer, Record


@dataclass
class Curves:
    """An observer of a solve that keeps numbers alone, those of the first sample of a batch.

    Attributes:
        residual: by level, ||f(z) − z|| / ||f(z)|| of every step that f was asked at.
        energy: likewise, where the update has one.
        also: another observer, which is given every record too.
    """

    also: Observer | None = None
    residual: dict[int, list[float]] = field(default_factory=dict)
    energy: dict[int, list[float]] = field(default_factory=dict)

    def __call__(self, record: Record) -> None:
        """Note one state."""
        evaluation = record.evaluation
        if evaluation is not None:
            # the layer may be run again, as by a second stage: its levels follow
            share = float(evaluation.residual[0]) / (float(evaluation.norm[0]) + 1e-9)
            self.residual.setdefault(record.level, []).append(share)
            if evaluation.energy is not None:
                self.energy.setdefault(record.level, []).append(float(evaluation.energy[0]))
        if self.also is not None:
            self.also(record)
