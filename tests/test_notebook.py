"""What a notebook shows of a registration and of a solution."""

import base64
import io
import re
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scans import affine_of, scene

from dio_lightning.implicit import Picard, fixed_point
from dio_lightning.registration.quality import Quality
from dio_lightning.registration.result import Registration
from dio_lightning.registration.scan import Scan
from dio_lightning.transforms import Affine, Chain


def picture(html: str) -> np.ndarray:
    (data,) = re.findall(r"src=\"data:image/png;base64,([^\"]+)\"", html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)


def registration() -> Registration:
    values = scene((24, 22, 20)).astype(np.float32)
    fixed, moving = (Scan.of(values, affine_of(values.shape), name) for name in ("a<b>.nii.gz", "moving.nii.gz"))
    chain = Chain([Affine(np.eye(4))])
    quality = Quality("doubtful", "they are not alike", 0.5, 1.2, 1.1, 1.0, 1.0, 0.0, 0.0, 0.0)
    return Registration(fixed, moving, chain, chain.inverse(moving.grid), quality, {"seconds": 2.0, "stages": []})


def test_a_registration_shows_its_verdict_and_a_picture():
    html = registration()._repr_html_()
    assert "<b>doubtful</b>: they are not alike" in html and "1.100 → 1.200" in html
    assert "a<b>" not in html, "names are escaped"
    assert picture(html).std() > 20 and len(html) < 400_000


def test_the_page_of_a_registration_is_that_of_its_folder(tmp_path):
    result = registration()
    result.save(tmp_path)
    saved = (tmp_path / "report.html").read_text(encoding="utf-8")
    panels = [re.findall(r"<svg viewBox.*?</svg>", page) for page in (result.page(), saved)]
    assert panels[0] == panels[1] and len(panels[0]) == 30, "ten panels of three slices"
    assert "doubtful" in saved and "They are not alike." in saved


def test_the_widget_is_given_the_fixed_image_and_the_warped_one(monkeypatch):
    """By a viewer that writes down what it was given; without any, a sentence says what to install."""
    given: list[dict] = []
    viewer = SimpleNamespace(load_volumes=given.extend)
    monkeypatch.setitem(sys.modules, "ipyniivue", SimpleNamespace(NiiVue=lambda: viewer))
    result = registration()
    assert result.view() is viewer
    fixed, warped = (nib.load(one["path"]) for one in given)
    np.testing.assert_allclose(fixed.affine, warped.affine)
    np.testing.assert_allclose(fixed.get_fdata(), warped.get_fdata(), atol=1e-3)
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dio-lightning\[notebook\]'"):
        result.view()


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
def test_a_solution_shows_every_sample_and_how_large_the_first_is(size):
    target = torch.zeros(2, len(size), *size)
    target[0, 0, 4, 3] = 2.0
    solution = fixed_point(lambda z: 0.5 * (z + target), torch.zeros_like(target), Picard(), max_steps=60)
    html = solution._repr_html_()
    assert html.count("<tr>") == 3 and html.count("converged") == 2
    shown = picture(html)
    expected = solution.value[0].norm(dim=0)
    expected = expected if expected.ndim == 2 else expected[:, :, 2]
    top = float(expected.max()) or 1.0
    np.testing.assert_allclose(shown, np.rint(255 * expected.numpy() / top).T[::-1], atol=1)


def test_a_solution_of_another_shape_or_none_has_no_picture():
    plain = fixed_point(lambda z: 0.5 * z, torch.ones(12, 3), Picard(), max_steps=1)
    html = plain._repr_html_()
    assert "<img" not in html and "steps ran out" in html and "and 4 more samples" in html
    broken = fixed_point(lambda z: z * torch.nan, torch.ones(1, 2, 4, 4), Picard(), max_steps=3)
    assert "failed" in broken._repr_html_()
