"""What `register` leaves for other tools: BIDS names, other formats, SimpleITK's verdict, and all of it or nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scans import affine_of, scene, turned, write
from transform_worlds import affine_of as oblique
from transform_worlds import smooth_field

from dio_lightning.headers import read_header
from dio_lightning.registration import Registration, Scan
from dio_lightning.registration import picture as pictures
from dio_lightning.registration.bids import Name, bids_outputs
from dio_lightning.registration.export import check_export
from dio_lightning.registration.outputs import Outputs
from dio_lightning.registration.quality import judge
from dio_lightning.transforms import Affine, Chain, ImageGrid, read_transform, write_transform

SIZE = (22, 20, 24)


def result(folder: Path, d: int, deformed: bool = True, kind=np.float32) -> Registration:
    """Two files on oblique grids of either handedness, and a transform between them."""
    size = SIZE[:d]
    affines = oblique(d), oblique(d, -1, 1.1, 0.1)
    paths = [
        write(folder, f"{name}.nii.gz", scene(size, seed).astype(kind), affine)
        for seed, (name, affine) in enumerate(zip(("fixed", "moving"), affines, strict=True))
    ]
    scans = [Scan.of(path) for path in paths]
    start = scans[1].grid.centre - scans[0].grid.centre
    shift = np.eye(4)
    shift[:3, 3] = start
    field = [smooth_field(scans[0].grid, 2.0, dtype=torch.float32)] if deformed else []
    chain = Chain([*field, Affine(shift @ turned(size, 6, 1.5))])
    inverse = chain.inverse(scans[1].grid)
    return Registration(*scans, chain, inverse, judge(*scans, chain, inverse), {})


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("d", [2, 3])
def test_simpleitk_makes_of_the_files_what_we_make(d, kind, tmp_path) -> None:
    made = result(tmp_path, d, kind=kind)
    made.save(tmp_path / "out", examine=lambda transform, warped: check_export(made, transform, warped))
    export = json.loads((tmp_path / "out/report.json").read_text())["export"]
    assert export["passed"] and export["mean_percent"] < 0.01 and export["points_mm"] < 1e-4
    # the same by hand, of the float image
    if d == 3 and kind is np.float32:
        images = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("fixed", "moving")]
        theirs = sitk.Resample(images[1], images[0], sitk.ReadTransform(str(tmp_path / "out/transform.h5")))
        ours = np.asarray(nib.load(tmp_path / "out/warped.nii.gz").dataobj)
        inner = (slice(6, -6),) * 3
        difference = np.abs(sitk.GetArrayFromImage(theirs).T - ours)[inner]
        assert ours[inner].std() > 10 and difference.mean() < 0.01


@pytest.mark.parametrize("wrong", ["transform", "points", "image"])
def test_a_wrong_export_is_seen(wrong, tmp_path) -> None:
    made = result(tmp_path, 3)
    made.save(tmp_path / "out")
    files = [tmp_path / "out/transform.h5", tmp_path / "out/warped.nii.gz"]
    assert check_export(made, *files)["passed"]
    if wrong == "image":
        image = nib.load(files[1])
        nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, 0), image.affine), files[1])
    else:
        off = np.eye(4)
        off[0, 3] = 2.0 if wrong == "transform" else 0.02
        write_transform(files[0], made.transform + Affine(off), made.fixed.grid, made.moving.grid, overwrite=True)
    export = check_export(made, *files)
    assert not export["passed"] and "expected at most 0.5 % and 0.01 mm" in export["sentence"]


def test_the_command_reports_the_check_and_fails_by_it(command, tmp_path, capsys, monkeypatch) -> None:
    size = (40, 36)
    image = write(tmp_path, "image.nii.gz", scene(size).astype(np.float32), affine_of(size))
    words = ("register", image, image, "--out", "out", "--stages", "rigid", "--check-export")
    command(*words)
    assert "SimpleITK's warped image differs by" in capsys.readouterr().out
    from dio_lightning.registration import export

    monkeypatch.setattr(export, "ALLOWED", -1.0)
    with pytest.raises(SystemExit) as stop:
        command(*words, "--overwrite")
    assert stop.value.code == 3 and "expected at most" in capsys.readouterr().out


def test_without_simpleitk_the_check_is_refused_before_any_work(command, tmp_path, capsys, monkeypatch) -> None:
    image = write(tmp_path, "image.nii.gz", scene((16, 16)).astype(np.float32))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SystemExit) as stop:
        command("register", image, image, "--out", "out", "--check-export")
    assert stop.value.code == 2 and 'pip install "dio-lightning[itk]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_format_cannot_hold_is_refused_before_any_work(command, tmp_path, capsys) -> None:
    plane = write(tmp_path, "plane.nii.gz", scene((16, 16)).astype(np.float32))
    sheared = np.diag([4.0, 4, 4, 1])
    sheared[0, 1] = 1.0
    skew = write(tmp_path, "skew.nii.gz", scene((12, 12, 12)).astype(np.float32), sheared)
    for image, words, sentence in (
        (plane, ("--also", "fsl"), "plane.nii.gz is a plane, FSL's transforms need volumes"),
        (skew, ("--check-export",), "skew.nii.gz has axes that are not at right angles"),
    ):
        with pytest.raises(SystemExit) as stop:
            command("register", image, image, "--out", "out", *words)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in printed and len(printed.splitlines()) == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("d", [2, 3])
def test_other_formats_hold_the_same_transform(d, tmp_path) -> None:
    made = result(tmp_path, d)
    also = ("learn2reg", "fsl") if d == 3 else ("learn2reg",)
    made.save(Outputs.in_folder(tmp_path / "out", also))
    grids = made.fixed.grid, made.moving.grid
    expected = made.transform.at(made.fixed.grid)
    for other in also:
        read = read_transform(tmp_path / f"out/displacement_{other}.nii.gz", *grids, format=other)
        torch.testing.assert_close(read.at(made.fixed.grid), expected, atol=1e-3, rtol=0)


def test_the_field_for_fsl_counts_in_the_edges_of_the_header(tmp_path) -> None:
    """Of images in microns FSL sees the numbers alone, so the field has them too."""
    made = result(tmp_path, 3)
    scans = []
    for name in ("fixed", "moving"):
        image = nib.load(tmp_path / f"{name}.nii.gz")
        microns = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1e3, 1e3, 1e3, 1]) @ image.affine)
        microns.header.set_xyzt_units("micron")
        nib.save(microns, tmp_path / f"{name}_microns.nii.gz")
        scans.append(Scan.of(tmp_path / f"{name}_microns.nii.gz"))
    made.save(Outputs.in_folder(tmp_path / "mm", ("fsl",)))
    replace(made, fixed=scans[0], moving=scans[1]).save(Outputs.in_folder(tmp_path / "microns", ("fsl",)))
    one, other = (nib.load(tmp_path / f"{folder}/displacement_fsl.nii.gz") for folder in ("mm", "microns"))
    np.testing.assert_allclose(other.header.get_zooms()[:3], 1e3 * np.array(one.header.get_zooms()[:3]), rtol=1e-5)
    np.testing.assert_allclose(other.get_fdata(), 1e3 * one.get_fdata(), rtol=1e-4, atol=1)


def test_all_files_come_or_none_and_none_of_an_earlier_result_stays(tmp_path, monkeypatch) -> None:
    made = result(tmp_path, 3)
    monkeypatch.setattr(pictures, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.save(tmp_path / "deep/out")
    assert not (tmp_path / "deep").exists()
    monkeypatch.undo()
    made.save(tmp_path / "deep/out")
    assert (tmp_path / "deep/out/displacement.nii.gz").exists()
    rigid = result(tmp_path, 3, deformed=False)
    with pytest.raises(FileExistsError):
        rigid.save(tmp_path / "deep/out")
    rigid.save(tmp_path / "deep/out", overwrite=True)
    # beside the new affine it would be another transform
    assert not (tmp_path / "deep/out/displacement.nii.gz").exists()


@pytest.mark.parametrize(
    ("name", "entities", "suffix"),
    [
        ("sub-01_T1w.nii.gz", {"sub": "01"}, "T1w"),
        ("sub-01_ses-a_run-2_bold.nii", {"sub": "01", "ses": "a", "run": "2"}, "bold"),
        ("tpl-MNI152_res-1_T1w.nii.gz", {"tpl": "MNI152", "res": "1"}, "T1w"),
    ],
)
def test_names_of_bids_are_read_and_written(name, entities, suffix) -> None:
    read = Name.of(Path("somewhere") / name)
    assert read == Name(entities, suffix) and str(read) == name.partition(".")[0]


@pytest.mark.parametrize("name", ["mni152_2mm.nii.gz", "T1w.nii.gz", "sub-01.nii.gz", "sub-01_T1-w.nii.gz"])
def test_other_names_are_none_of_bids(name) -> None:
    assert Name.of(Path(name)) is None
    with pytest.raises(ValueError, match=r"has no name of BIDS, expected one such as sub-01_T1w\.nii\.gz"):
        bids_outputs(Path("out"), Path("fixed.nii.gz"), Path(name))


@pytest.mark.parametrize(
    ("fixed", "moving", "transform", "warped"),
    [
        (
            "tpl-MNI152NLin2009cAsym_res-1_T1w.nii.gz",
            "anat/sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5",
            "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-warped_T1w.nii.gz",
        ),
        (
            "sub-01_ses-a_T1w.nii.gz",
            "func/sub-01_ses-a_task-rest_space-old_bold.nii.gz",
            "sub-01/ses-a/func/sub-01_ses-a_task-rest_from-bold_to-T1w_mode-image_xfm.h5",
            "sub-01/ses-a/func/sub-01_ses-a_task-rest_space-T1w_desc-warped_bold.nii.gz",
        ),
        (
            "sub-02_T1w.nii.gz",
            "sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_from-T1w_to-sub02T1w_mode-image_xfm.h5",
            "sub-01/anat/sub-01_space-sub02T1w_desc-warped_T1w.nii.gz",
        ),
        (
            "mni152_2mm.nii.gz",
            "sub-01_T2w.nii.gz",
            "sub-01/anat/sub-01_from-T2w_to-mni1522mm_mode-image_xfm.h5",
            "sub-01/anat/sub-01_space-mni1522mm_desc-warped_T2w.nii.gz",
        ),
    ],
)
def test_results_are_named_as_fmriprep_names_them(fixed, moving, transform, warped) -> None:
    paths = bids_outputs(Path("out"), Path(fixed), Path(moving)).paths
    assert paths["transform"] == Path("out") / transform and paths["warped"] == Path("out") / warped
    names = [path.name for path in paths.values()]
    assert len(set(names)) == len(names)
    start, _, ends = paths["inverse"].name.partition("_from-")
    there = transform.rpartition("/")[2].partition("_from-")[2].partition("_mode")[0].split("_to-")
    assert ends == f"{there[1]}_to-{there[0]}_mode-image_xfm.h5" and transform.rpartition("/")[2].startswith(start)


def test_a_data_set_of_derivatives_is_left(command, tmp_path) -> None:
    size = (40, 36)
    (tmp_path / "anat").mkdir()
    for name in ("tpl-MNI_T1w", "anat/sub-01_T1w", "anat/sub-01_desc-old_dseg"):
        values = scene(size) if name.endswith("T1w") else (scene(size) > 60).astype(float)
        write(tmp_path, f"{name}.nii.gz", values.astype(np.uint8), affine_of(size))
    words = ["tpl-MNI_T1w.nii.gz", "anat/sub-01_T1w.nii.gz", "--out", "deriv", "--bids", "--stages", "rigid"]
    command("register", *words, "--warp-labels", "anat/sub-01_desc-old_dseg.nii.gz", "--also", "learn2reg")
    folder = tmp_path / "deriv/sub-01/anat"
    described = json.loads((tmp_path / "deriv/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "dio-lightning" and described["GeneratedBy"][0]["Version"]
    names = {path.name for path in folder.iterdir()}
    assert all(name.startswith("sub-01_") for name in names)
    assert {
        "sub-01_space-MNI_desc-warped_T1w.nii.gz",
        "sub-01_space-MNI_desc-warped_T1w.json",
        "sub-01_space-MNI_desc-warped_dseg.nii.gz",
        "sub-01_from-T1w_to-MNI_mode-image_xfm.h5",
        "sub-01_from-T1w_to-MNI_mode-image_xfm.json",
        "sub-01_from-MNI_to-T1w_mode-image_xfm.h5",
    } <= names
    # from-T1w_to-MNI brings images to MNI, so it takes points of MNI to the scan
    there = read_transform(folder / "sub-01_from-T1w_to-MNI_mode-image_xfm.h5")
    fixed, moving = (ImageGrid.of(read_header(tmp_path / name)) for name in words[:2])
    warped = read_header(folder / "sub-01_space-MNI_desc-warped_T1w.nii.gz")
    assert ImageGrid.of(warped).like(fixed) and moving.contains(there.at(fixed)).any()
    # another subject's result leaves the description as it is
    (tmp_path / "deriv/dataset_description.json").write_text("mine")
    command("register", *words, "--overwrite")
    assert (tmp_path / "deriv/dataset_description.json").read_text() == "mine"
