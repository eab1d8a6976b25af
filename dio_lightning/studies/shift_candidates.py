"""The rows of the shift study: who finds a displacement, and how."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch import LightningModule
from torch import Tensor

from dio_lightning.pair import Pair
from dio_lightning.studies.loading import Loaded
from dio_lightning.studies.shift_domains import Domain, Plan
from dio_lightning.studies.shift_refine import Refinement
from dio_lightning.studies.shift_report import NOTHING, REFINED


@dataclass(frozen=True)
class Candidate:
    """A row of the table, one of its seeds: a name, the weights' name and hash, and how a displacement is found."""

    name: str
    weights: str
    digest: str
    register: Callable[[Pair], Tensor]
    keeps_grid: Callable[[Pair], bool]
    """Whether it takes the moving image of a pair as it is, on whatever grid."""
    refine: Refinement | None = None
    module: LightningModule | None = None
    """The method, to be run once before it is timed."""

    def key(self, domain: Domain, plan: Plan) -> str:
        """A hash of all that its scores depend on, but for the images."""
        parts = [self.digest, str(self.refine), json.dumps(domain.section, sort_keys=True), str(plan.scores)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def candidates(loaded: Sequence[Loaded], options: Sequence[str], refinement: Refinement) -> list[Candidate]:
    """The rows in order: no registration, then each method as it is and, if it was trained, refined."""
    found = [Candidate(NOTHING, "", "", _nothing, lambda pair: True)]
    for one in loaded:
        path = str(one.weights) if not one.weights.is_absolute() else one.weights.name
        module = one.module
        plain = Candidate(
            one.name, path, _digest(one.weights, options), module.register, module.keeps_grid, None, module
        )
        found.append(plain)
        trained = any(True for _ in module.parameters())
        if refinement.steps and trained:
            found.append(replace(plain, name=one.name + REFINED, refine=refinement, keeps_grid=_one_grid))
    return found


def check(loaded: Sequence[Loaded]) -> None:
    """Weights of one name are of one method, and no name is that of another row.

    Raises:
        ValueError: if not.
    """
    kinds: Mapping[str, Loaded] = {one.name: one for one in reversed(loaded)}
    for one in loaded:
        other = kinds[one.name]
        if type(one.module) is not type(other.module):
            raise ValueError(
                f"{one.weights} and {other.weights} are no seeds of one method: give them names, NAME=FILE"
            )
        if one.name == NOTHING or one.name.endswith(REFINED):
            raise ValueError(f"{one.name!r} is the name of a row that the study adds: choose another")


def _one_grid(pair: Pair) -> bool:
    """Instance optimisation compares the images themselves, on the fixed grid."""
    return "moving_affine" not in pair


def _nothing(pair: Pair) -> Tensor:
    """The displacement zero."""
    fixed = pair["fixed"]
    return fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])


def _digest(weights: Path, options: Sequence[str]) -> str:
    """Of the weights, the config beside them and the overrides."""
    beside = weights.with_suffix(".yaml")
    found = hashlib.sha256("\n".join(options).encode())
    for file in (weights, beside) if beside.is_file() else (weights,):
        found.update(file.read_bytes())
    return found.hexdigest()
