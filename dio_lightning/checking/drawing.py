"""What a data module hands out: the contract of its batches, and their scores before registration."""

import math
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dio_lightning.errors import times
from dio_lightning.findings import Finding, Report, merged
from dio_lightning.pair import Pair
from dio_lightning.scores import SCORES, look_up
from dio_lightning.scores.pairs import one_pair, score_some
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.summary import summarise

Scores = dict[str, dict[str, dict[str, float | int | str | None]]]
"""split -> score -> mean, std, n, worst (value) and pair (the one that has it)."""
BROKEN = (ValueError, OSError, EOFError, RuntimeError, zlib.error)
TYPES = {"label": torch.int16, "mask": torch.uint8}


def drawn(module: LightningDataModule) -> Report:
    """A report on a data module that has no `check`: every batch of every split is drawn and held to `Pair`."""
    findings: list[Finding] = []
    splits: dict[str, dict[str, str]] = {}
    module.prepare_data()
    for stage in ("fit", "test"):
        module.setup(stage)
    for split, loader in _loaders(module, ("train", "val", "test"), findings):
        shapes: dict[str, None] = {}
        pairs = 0
        for batch in _batches(split, loader, findings):
            pairs += len(batch["fixed"])
            shapes[times(batch["fixed"].shape[2:])] = None
            findings += [Finding("error", (name_of(batch, split),), text) for text in broken_contract(batch)]
        splits[split] = {"pairs": str(pairs), "shape [voxels]": ", ".join(shapes)}
    return Report(type(module).__name__, splits, [], merged(findings), ("val", "test"))


def broken_contract(batch: Pair) -> list[str]:
    """What a batch has that `Pair` does not allow, a sentence each."""
    sentences = []
    d = batch["fixed"].ndim - 2
    for side in ("fixed", "moving"):
        image: Tensor = batch[side]
        if image.dtype != torch.float32 or image.ndim not in (4, 5) or image.shape[1] != 1:
            sentences.append(f"{side} is {image.dtype} of shape {tuple(image.shape)}, expected float32 (b, 1, *s)")
        elif not bool(image.isfinite().all()):
            sentences.append(f"{side} has voxels that are NaN or infinite, expected finite intensities")
        elif bool(image.max() == image.min()):
            sentences.append(f"{side} is {image.max().item():g} everywhere, expected an image")
        for kind, dtype in TYPES.items():
            values = batch.get(f"{side}_{kind}")
            if isinstance(values, Tensor) and (values.dtype != dtype or values.shape != image.shape):
                text = f"{values.dtype} of shape {tuple(values.shape)}, expected {dtype} of {tuple(image.shape)}"
                sentences.append(f"{side}_{kind} is {text}")
        points = batch.get(f"{side}_points")
        if isinstance(points, Tensor):
            last = torch.tensor(image.shape[2:], dtype=points.dtype).view(1, -1, 1) - 1
            if points.ndim != 3 or points.shape[1] != d:
                sentences.append(f"{side}_points has shape {tuple(points.shape)}, expected (b, {d}, n)")
            elif not bool(((points >= 0) & (points <= last)).all()):
                sentences.append(f"{side}_points has landmarks outside of the image")
    if "moving_affine" not in batch and batch["fixed"].shape != batch["moving"].shape:
        shapes = [tuple(batch[side].shape) for side in ("fixed", "moving")]
        sentences.append(f"fixed has shape {shapes[0]} and moving {shapes[1]}, expected one grid or a moving_affine")
    return sentences


def initial_scores(module: LightningDataModule, splits: Sequence[str]) -> tuple[Scores, list[Finding]]:
    """Scores of the pairs of some splits at u = 0, and what kept pairs from being scored."""
    findings: list[Finding] = []
    scores: Scores = {}
    for split, loader in _loaders(module, splits, findings):
        rows: list[tuple[str, dict[str, float]]] = []
        for batch in _batches(split, loader, findings):
            broken = broken_contract(batch)
            findings += [Finding("error", (name_of(batch, split),), text) for text in broken]
            rows += [] if broken else _rows(batch)
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        if rows and names:
            scores[split] = {name: _summary(name, rows) for name in names}
    return scores, findings


def first_training_pair(module: LightningDataModule) -> list[Finding]:
    """What is wrong with the first training pair, as augmentation leaves it."""
    findings: list[Finding] = []
    for split, loader in _loaders(module, ("train",), findings):
        for batch in islice(_batches(split, loader, findings), 1):
            findings += [Finding("error", (name_of(batch, split),), text) for text in broken_contract(batch)]
    return findings


def name_of(batch: Pair, split: str) -> str:
    """The first pair of a batch, as a report names it."""
    fixed, moving = batch.get("fixed_id"), batch.get("moving_id")
    return f"{split} pair {fixed[0]} {moving[0]}" if fixed and moving else f"{split} pair"


def _summary(name: str, rows: list[tuple[str, dict[str, float]]]) -> dict[str, float | int | str | None]:
    having = [(row[name], pair) for pair, row in rows if math.isfinite(row.get(name, math.nan))]
    values = summarise(value for value, _ in having)
    worst, pair = (max if look_up(name).better == "smaller" else min)(having, default=(None, None))
    return {"mean": values["mean"], "std": values["std"], "n": values["n"], "worst": worst, "pair": pair}


def _rows(batch: Pair) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores of each pair of a batch without registration: all that u = 0 has but distances of surfaces."""
    names = [score.name for score in SCORES if score.identity]
    for index in range(len(batch["fixed"])):
        pair = one_pair(batch, index)
        still = torch.zeros(1, pair["fixed"].ndim - 2, *pair["fixed"].shape[2:])
        scores, _ = score_some(still, pair, ScoreOptions(surface=False), names)
        row = {name: float(value) for name, value in scores.items()}
        ids = pair.get("fixed_id", ["?"]), pair.get("moving_id", ["?"])
        yield f"{ids[0][0]} {ids[1][0]}", row


def _loaders(
    module: LightningDataModule, splits: Sequence[str], findings: list[Finding]
) -> Iterator[tuple[str, DataLoader]]:
    for split in splits:
        try:
            yield split, getattr(module, f"{split}_dataloader")()
        except BROKEN as error:
            findings += [Finding("error", (f"{split} pairs",), line) for line in str(error).splitlines()]


def _batches(split: str, loader: DataLoader, findings: list[Finding]) -> Iterator[Pair]:
    """The pairs of a loader one by one; one that cannot be drawn is a finding and the next one comes."""
    dataset, collate = loader.dataset, loader.collate_fn
    order = list(loader.sampler) if split == "train" else range(len(dataset))  # type: ignore[arg-type]
    for index in tqdm(order, f"Drawing {split} pairs", delay=2, leave=False, disable=None):
        try:
            batch = collate([dataset[index]])
        except BROKEN as error:
            findings += [Finding("error", (f"{split} pair {index}",), line) for line in str(error).splitlines()]
        else:
            yield cast(Pair, batch)
