"""Reports as files: whole, self-contained, and saying what the scores say; a browser looks at them in test_browser."""

import base64
import gzip
import json
import math
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from trainings import batch, build

from dio_lightning.callbacks.gathering import Key, Scored
from dio_lightning.callbacks.report import About
from dio_lightning.callbacks.report_page import page_of_test, ranked
from dio_lightning.layers import Run
from dio_lightning.pictures import Upright
from dio_lightning.reports.curves import Curves
from dio_lightning.reports.page import NIIVUE, Download, Facts, Page, Section
from dio_lightning.reports.pairs import pair_view
from dio_lightning.reports.panels import panels
from dio_lightning.reports.study import study_page, tables_of
from dio_lightning.reports.volumes import block_means, volumes
from dio_lightning.scores.table import Cell, Table

SIZE = (12, 15, 18)


def oblique() -> tuple[dict, torch.Tensor]:
    """A pair that is stored from left to right, down and to the front, in voxels of 1, 2 and 3 mm."""
    affine = np.array([[-1.0, 0, 0, 40], [0, 0, 3, -50], [0, -2, 0, 60], [0, 0, 0, 1]])
    label = torch.zeros(1, 1, *SIZE, dtype=torch.int16)
    label[..., 2:6, 3:8, 10:16] = 7
    image = torch.rand(1, 1, *SIZE)
    pair = {"fixed": image, "moving": image.roll(1, 2), "fixed_label": label, "moving_label": label.roll(1, 2)}
    return {**pair, "affine": torch.tensor(affine)[None]}, torch.zeros(1, 3, *SIZE)


def scored(*dice: float) -> list[Scored]:
    rows = [
        {"fixed_id": "a", "moving_id": f"m{i}", "dice": d, "dice_identity": 0.1, "folds": 0.0}
        for i, d in enumerate(dice)
    ]
    labels = [[{"label": 3, "dice": d, "dice_identity": 0.1}] for d in dice]
    return [Scored(Key(0, i, "a", f"m{i}"), row, labels[i]) for i, row in enumerate(rows)]


def test_a_page_names_nothing_outside_and_escapes_what_it_is_given():
    name = 'a<b>&"c".nii.gz'
    page = Page(name, [Section("One", [Facts({name: "x"}), Download("a.csv", "ä,b\n1,2\n")])]).html()
    assert name not in page and "a&lt;b&gt;&amp;&#34;c&#34;" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page and "@import" not in page
    (data,) = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    assert base64.b64decode(data).decode() == "ä,b\n1,2\n"


def test_a_page_with_the_viewer_carries_the_licences_of_all_that_it_bundles():
    pair, u = oblique()
    page = Page("x", [Section("Pair", [pair_view(Upright.of(pair, u), "x")])]).html()
    (data,) = re.findall(r'href="data:text/plain;charset=utf-8;base64,([^"]+)"', page)
    text = base64.b64decode(data).decode()
    titles = re.findall(r"^=+\n(\S+).*\n=+$", text, re.MULTILINE)
    # what npm installs with the package, and the three codecs that are compiled into the bundle
    npm = "nifti-reader-js fflate gl-matrix array-equal @lukeed/uuid @lukeed/csprng @ungap/structured-clone zarrita"
    npm += " @zarrita/storage reference-spec-reader unzipit uzip-module numcodecs"
    assert titles[:13] == npm.split() and [title.strip(",") for title in titles[13:16]] == [
        "C-Blosc",
        "Zstandard",
        "LZ4",
    ]
    assert NIIVUE.read_text().count("AGFzbQ") == 3, "WebAssembly in base64"
    assert text.count("Copyright (c)") >= 15 and "Niivue" in text and "BSD 2-Clause" in text
    assert "licences" not in Page("x", [Section("One", [Facts({"a": "b"})])]).html()


def test_pairs_are_ranked_from_worst_to_best():
    pairs = scored(0.5, 0.9, 0.1, 0.7, 0.3)
    assert [(rank, one.row["dice"]) for rank, one in ranked(pairs, 3)] == [
        ("worst", 0.1),
        ("median", 0.5),
        ("best", 0.9),
    ]
    errors = [Scored(p.key, {"fixed_id": "a", "moving_id": "m", "tre": p.row["dice"]}, []) for p in pairs]
    assert [(rank, one.row["tre"]) for rank, one in ranked(errors, 3)] == [
        ("worst", 0.9),
        ("median", 0.5),
        ("best", 0.1),
    ]
    assert [one.row["dice"] for _, one in ranked(pairs, 1)] == [0.5]
    assert len(ranked(pairs, 9)) == 5 and ranked(pairs[:1], 3)[0][0] == "median"


def test_a_page_of_a_test_has_the_scores_of_its_files():
    pairs = scored(0.25, 0.75, 0.5, 0.6, 0.7)
    page = page_of_test(pairs, {3: "Thalamus"}, About("model: x\n", "DIO", {}), [], "Learn2Reg").html()
    assert "0.56 ± 0.18" in page and "0.1 ± 0" in page and "0.100 → 0.560" in page
    assert page.count('class="plot"') >= 2 and "Thalamus" in page and "model: x" in page
    first = re.findall(r"base64,([^\"]+)\"", page.split('download="metrics.csv"')[1])[0]
    lines = base64.b64decode(first).decode().splitlines()
    assert len(lines) == 6 and lines[0].startswith("fixed_id,moving_id,dice,folds") and ",0.25," in lines[1]
    assert "<section" in page and page.count("<section") == 3, "no tab for pairs that are not there"


def test_a_score_that_no_pair_has_makes_no_page_fail():
    pairs = scored(math.nan, math.nan)
    page = page_of_test(pairs, {}, About("", "DIO", {}), [], "").html()
    assert "none" in page and [rank for rank, _ in ranked(pairs, 2)] == ["", ""]


def test_volumes_of_the_viewer_lie_where_the_image_lies():
    pair, u = oblique()
    made = {
        name: nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
        for name, text in volumes(Upright.of(pair, u)).items()
    }
    assert nib.aff2axcodes(made["fixed"].affine) == ("R", "A", "S")
    native = nib.as_closest_canonical(nib.Nifti1Image(pair["fixed"][0, 0].numpy(), pair["affine"][0].numpy()))
    np.testing.assert_allclose(made["fixed"].affine, native.affine)
    low, high = float(native.get_fdata().min()), float(np.quantile(native.get_fdata(), 0.999))
    expected = np.rint(((native.get_fdata() - low) / (high - low)).clip(0, 1) * 255)
    np.testing.assert_allclose(made["fixed"].get_fdata(), expected, atol=1)
    label = nib.as_closest_canonical(nib.Nifti1Image(pair["fixed_label"][0, 0].numpy(), pair["affine"][0].numpy()))
    np.testing.assert_array_equal(made["fixed_labels"].get_fdata() > 0, label.get_fdata() > 0)
    assert {"sagittal_grid", "coronal_grid", "axial_grid", "warped", "moving_labels"} <= made.keys()


def test_block_means_are_means_of_blocks():
    image = np.arange(7 * 4 * 6, dtype=float).reshape(7, 4, 6)
    small = block_means(image, 2)
    assert small.shape == (3, 2, 3) and small[1, 0, 2] == image[2:4, 0:2, 4:6].mean()


def test_panels_show_their_slice_as_a_nifti_viewer_does():
    import io

    from PIL import Image

    pair, u = oblique()
    plane = Upright.of(pair, u).plane(2)
    shown = {panel.title: panel for panel in panels(plane)}
    assert {"fixed", "labels before", "labels after", "edges after", "det ∇ϕ", "deformed grid"} <= shown.keys()
    data = re.search(r"base64,([^\"]+)", str(shown["fixed"].svg))[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)
    native = nib.as_closest_canonical(nib.Nifti1Image(pair["fixed"][0, 0].numpy(), pair["affine"][0].numpy()))
    label = nib.as_closest_canonical(nib.Nifti1Image(pair["fixed_label"][0, 0].numpy(), pair["affine"][0].numpy()))
    index = int(np.argwhere(label.get_fdata() > 0)[:, 2].mean())
    slice_ = native.get_fdata()[:, :, index].T[::-1]
    assert np.corrcoef(picture.flatten(), slice_.flatten())[0, 1] > 0.999
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', str(shown["fixed"].svg)).groups())
    assert width / height == pytest.approx(12 * 1.0 / (18 * 3.0), rel=1e-3), "millimetres, not voxels"
    scales = [shown[f"{name} − fixed"].scale for name in ("moving", "warped")]
    assert scales[0] == scales[1]


def test_folds_are_yellow_and_counted():
    pair, u = oblique()
    u[:, 0] = -2 * torch.arange(SIZE[0]).view(-1, 1, 1).float()
    panel = panels(Upright.of(pair, u).plane(1))[-1]
    assert "100 %" in panel.about


def test_curves_are_those_of_the_solve():
    module, pair = build("DIO").eval(), batch(0)
    curves = Curves()
    still = module.register(pair)
    torch.testing.assert_close(module.register(pair, Run(observe=curves)), still)
    assert curves.residual.keys() == curves.energy.keys() == {0, 1}
    assert all(1 <= len(values) <= 3 and min(values) >= 0 for values in curves.residual.values())
    view = pair_view(Upright.of({**pair}, still), "x", curves=curves)
    assert "relative residual" in view.curves and view.volumes == {} and [*view.slices] == ["image"]


def test_the_page_of_a_study_has_its_tables_as_markdown_has_them():
    from matplotlib.figure import Figure

    cells = [[Cell("a|b"), Cell("0.5 ± 0.1", bold=True)], [Cell("c"), Cell("–")]]
    table = Table(["method", "Dice *"], cells, "Over 3 pairs <x>.", right=True)
    again = tables_of(table.markdown() + "\n" + table.markdown())
    assert again == [table, table]
    figure = Figure()
    figure.subplots().set_title("curve")
    page = study_page("solvers", table.markdown(), figure, {"solvers.csv": "a,b\n"}).html()
    assert "Over 3 pairs &lt;x&gt;." in page and "solvers.csv" in page and ">curve<" in page and "#000000" not in page


@pytest.mark.slow
def test_a_test_writes_its_report_beside_its_scores(command, tmp_path):
    from test_loggers import TINY

    (tmp_path / "report.yaml").write_text(
        "trainer: {callbacks: [{class_path: dio_lightning.callbacks.Report, init_args: {pairs: 2}},"
        " {class_path: dio_lightning.callbacks.Panels, init_args: {pairs: 0}}]}"
    )
    command("test", *TINY, "--config", "report.yaml", "--trainer.default_root_dir", "run", "--trainer.logger", "false")
    page = (tmp_path / "run/report.html").read_text()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert f"{summary['dice']['mean']:.4g} ±" in page and ">worst<" in page and ">best<" in page
    assert "relative residual" in page and "SyntheticPairs" in page
    assert (tmp_path / "run/metrics.csv").read_text() in [
        base64.b64decode(data).decode() for data in re.findall(r"text/csv;charset=utf-8;base64,([^\"]+)\"", page)
    ]
