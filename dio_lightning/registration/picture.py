"""What `register` leaves to look at: a slice of both images before and after, and a page of them."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import escape

from dio_lightning.pair import Pair
from dio_lightning.pictures import Upright
from dio_lightning.pictures import draw as drawn
from dio_lightning.registration.grids import seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.reports.curves import Curves
from dio_lightning.reports.page import Block, Download, Facts, Page, Plot, Section, Text
from dio_lightning.reports.pairs import pair_view
from dio_lightning.reports.plots import curves_svg
from dio_lightning.scores.table import Cell, Table
from dio_lightning.transforms import Transform


def standing(fixed: Scan, moving: Scan, transform: Transform, labels: tuple[Scan, Scan] | None = None) -> Upright:
    """Both images, their label maps and the whole transform as pictures have them.

    The moving image and its labels stand where its header places them.
    """
    image = seen_at(moving.normalised, moving.grid, np.eye(4)[None], fixed.grid)
    pair = Pair(fixed=fixed.normalised, moving=image, affine=torch.from_numpy(fixed.grid.affine)[None])
    if labels is not None:
        pair["fixed_label"] = labels[0].values.to(torch.int32)
        carried = seen_at(labels[1].values, moving.grid, np.eye(4)[None], fixed.grid, "nearest")
        pair["moving_label"] = carried.to(torch.int32)
    return Upright.of(pair, transform.on_grid(fixed.grid.size, fixed.grid.affine).float())


def title_of(fixed: Scan, moving: Scan) -> str:
    """What was registered onto what."""
    return f"{Path(moving.name).name} onto {Path(fixed.name).name}"


def draw(path: Path, pair: Upright, title: str) -> None:
    """Write the panels of a test for one pair."""
    drawn(pair.plane(1), title).savefig(path, dpi=110)


def write_page(path: Path, pair: Upright, title: str, report: Mapping[str, Any], curves: Sequence[Curves]) -> None:
    """Write report.html: the verdict and what it rests on, the pair, its solves, the run."""
    path.write_text(page_of(pair, title, report, curves).html(), encoding="utf-8")


def page_of(pair: Upright, title: str, report: Mapping[str, Any], curves: Sequence[Curves]) -> Page:
    """The page of a registration.

    Args:
        pair: both images and the transform.
        title: which images.
        report: what report.json says.
        curves: of every deformable stage.
    """
    quality, text = report["quality"], json.dumps(report, indent=2)
    numbers = {} if pair.dice is None else {"mean Dice": (_said(pair.dice[0]), _said(pair.dice[1]))}
    solves: list[Block] = [Plot(curves_svg(one), CAPTION) for one in curves if one.residual]
    run = {name: str(report[name]) for name in ("command", "fixed", "moving", "method") if report.get(name)}
    run |= {"warnings": "; ".join(report.get("warnings", [])) or "none"}
    run |= {"versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items())}
    return Page(
        title,
        [
            Section("Pair", [pair_view(pair, title, numbers=numbers)]),
            Section("Stages", [*([_stages(report)] if report.get("stages") else []), *solves]),
            Section("Run", [Facts(run), Download("report.json", text, "application/json"), Text("report.json", text)]),
        ],
        f"{quality['sentence'][:1].upper()}{quality['sentence'][1:]}.",
        quality["verdict"],
        _chips(report),
    )


CAPTION = (
    "Every step of a deformable stage, level by level, coarse to fine: how far a step would still move it, by the size "
    "of where it is, and the energy that it descends on, by that at the start of the level."
)


def _chips(report: Mapping[str, Any]) -> dict[str, str]:
    quality, inverse = report["quality"], report["inverse"]
    chips = {
        "mutual information": f"{_said(quality['start'])} → {_said(quality['information'])}",
        "overlap": _said(quality["overlap"]),
        "folds (%)": _said(quality["folds"], 4),
        "SD log J": _said(quality["std_logj"]),
    }
    if "landmarks_mm" in report:
        chips["landmarks (mm)"] = "{before:.2f} → {after:.2f}".format(**report["landmarks_mm"])
    chips |= {name: _said(value) for name, value in report.get("scores", {}).items()}
    if inverse["mean_mm"] is not None:
        chips["inverse (mm)"] = f"{inverse['mean_mm']:.3f}"
    return chips | ({"seconds": f"{report['seconds']:.1f}"} if "seconds" in report else {})


def _said(value: float | None, digits: int = 3) -> str:
    """A number as text; a dash for one that is missing, as the Dice of maps that have no label in common."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _stages(report: Mapping[str, Any]) -> Table:
    """A row a stage, and one for every level of a deformable one."""
    rows: list[list[Cell]] = []
    for stage in report.get("stages", []):
        rows.append([Cell(stage["stage"]), *(Cell(""),) * 4, Cell(f"{stage['seconds']:.1f}")])
        for level in stage.get("levels", []):
            energy = level.get("energy")
            rows.append(
                [
                    Cell(f"– level {level['level'] + 1}"),
                    Cell(str(level["steps"])),
                    Cell("failed" if level["failed"] else "yes" if level["converged"] else "no"),
                    Cell("" if level["residual"] is None else f"{level['residual']:.2g}"),
                    Cell("" if energy is None else f"{energy['start']:.4g} → {energy['end']:.4g}"),
                    Cell(""),
                ]
            )
    return Table(["stage", "steps", "converged", "residual", "energy", "seconds"], rows, right=True)


def notebook_html(pair: Upright, title: str, report: Mapping[str, Any]) -> str:
    """What a notebook shows of a registration: the verdict, its numbers and the sheet of panels."""
    file = io.BytesIO()
    drawn(pair.plane(1), title, width=1.6).savefig(file, dpi=80)
    data = base64.b64encode(file.getvalue()).decode()
    numbers = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in _chips(report).items())
    quality = report["quality"]
    return (
        f"<div><p><b>{escape(quality['verdict'])}</b>: {escape(quality['sentence'])}</p><p>{numbers}</p>"
        f'<img alt="{escape(title)}" style="max-width:100%" src="data:image/png;base64,{data}"></div>'
    )


def widget(folder: Path) -> Any:  # noqa: ANN401
    """Ipyniivue's viewer of a saved registration: the fixed image, the warped one above it.

    Args:
        folder: with fixed.nii.gz and warped.nii.gz, which are read when the widget is shown.

    Raises:
        ModuleNotFoundError: without ipyniivue.
    """
    try:
        viewer = import_module("ipyniivue")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("view() needs ipyniivue: pip install 'dio-lightning[notebook]'") from error
    made = viewer.NiiVue()
    fixed, warped = ({"path": str(folder / f"{name}.nii.gz"), "colormap": "gray"} for name in ("fixed", "warped"))
    made.load_volumes([fixed, {**warped, "opacity": 0.5}])
    return made
