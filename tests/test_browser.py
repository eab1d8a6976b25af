"""Reports in a real browser, from disk: tabs and viewer work, nothing complains, pictures lie as they should."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scans import scene

from dio_lightning.callbacks.gathering import Key, Scored
from dio_lightning.callbacks.report import About
from dio_lightning.callbacks.report_page import page_of_test
from dio_lightning.pictures import Upright
from dio_lightning.registration.picture import page_of
from dio_lightning.reports.curves import Curves
from dio_lightning.reports.page import write_page
from dio_lightning.reports.pairs import pair_view

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the extra dev)")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="needs Debian's chromium and chromium-driver"
)
SIZE = (36, 44, 30)
PLAIN = ".panel text { display: none } .panel svg { border-radius: 0 !important }"
"""Takes letters and round corners off pictures, which nibabel does not have."""
OPTIONS = [
    *("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    *("--disable-dev-shm-usage", "--window-size=1200,900", "--force-device-scale-factor=1"),
]


def stored() -> tuple[np.ndarray, np.ndarray]:
    """A head without symmetry, stored leftwards, upwards and backwards in voxels of 2, 3 and 2.5 mm, and its affine."""
    affine = np.array([[-2.0, 0, 0, 35], [0, 0, 2.5, -40], [0, -3, 0, 60], [0, 0, 0, 1]])
    ramp = sum(
        w * np.linspace(0, 1, n).reshape(-1, *[1] * (2 - a)) for a, (w, n) in enumerate(zip((0.5, 0.3, 0.2), SIZE))
    )
    return (scene(SIZE) * (0.2 + ramp)).astype(np.float32), affine


def view() -> Any:
    """A pair that was moved by a few voxels."""
    values, affine = stored()
    image = torch.from_numpy(values)[None, None] / 200
    u = torch.zeros(1, 3, *SIZE)
    u[:, 1] = 1.5 * torch.sin(torch.linspace(0, 6, SIZE[0])).view(-1, 1, 1)
    label = (image > 0.5).short() + (image > 0.7).short()
    both = {"fixed_label": label, "moving_label": label.roll(2, 3)}
    pair = {"fixed": image, "moving": image.roll(2, 3), **both, "affine": torch.from_numpy(affine)[None]}
    return Upright.of(pair, u)


def pages(folder: Path) -> dict[str, Path]:
    """A report of a test and one of a registration."""
    pair, curves = view(), Curves()
    curves.residual, curves.energy = {0: [1.0, 0.3], 1: [0.5, 0.1]}, {0: [3.0, 2.0], 1: [2.0, 1.0]}
    made = {name: folder / f"{name} report.html" for name in ("test", "registration")}
    scored = [
        Scored(Key(0, i, "a", str(i)), {"fixed_id": "a", "moving_id": str(i), "dice": d, "dice_identity": d / 2}, [])
        for i, d in enumerate((0.5, 0.6, 0.7, 0.55, 0.8))
    ]
    views = [
        pair_view(pair, "0 onto a", "worst", {"Dice": ("0.250", "0.500")}, curves),
        pair_view(pair, "4 onto a", "best"),
    ]
    write_page(made["test"], page_of_test(scored, {}, About("x: 1\n", "DIO", {}), views, "Learn2Reg"))
    quality = {"verdict": "good", "sentence": "they are alike", "start": 1.1, "information": 1.4, "overlap": 0.9}
    quality |= {"folds": 0.0, "std_logj": 0.1}
    report = {"quality": quality, "inverse": {"mean_mm": 0.01}, "versions": {"torch": "2"}, "seconds": 3.0}
    write_page(made["registration"], page_of(pair, "moving onto fixed", report, [curves]))
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """One browser for all tests, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.pages = pages(tmp_path_factory.mktemp("pages"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Opens a report; in the end, nothing has complained and nothing was fetched."""

    def open_page(name: str) -> Any:
        browser.get(browser.pages[name].as_uri())
        return browser

    yield open_page
    problems = [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]
    assert not problems, problems
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert not [name for name in fetched if not name.startswith(("data:", "blob:"))], fetched


def shot(element: Any) -> np.ndarray:
    """What an element looks like, grey, from 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("L"), dtype=float)


def canonical(axis: int, index: int) -> np.ndarray:
    """A slice across an axis as nibabel has it: right or anterior to the right, anterior or superior at the top."""
    image = nib.as_closest_canonical(nib.Nifti1Image(*stored()))
    return np.asarray(image.dataobj).take(index, axis).T[::-1]


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two pictures of one shape of the body."""
    small = [
        np.asarray(Image.fromarray(np.ascontiguousarray(p, dtype=np.float32)).resize((60, 60))) for p in (one, other)
    ]
    return float(np.corrcoef(*(picture.flatten() for picture in small))[0, 1])


def object_of(picture: np.ndarray) -> np.ndarray:
    """A picture cut to what is not dark."""
    rows, columns = np.nonzero(picture > 0.2 * picture.max())
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def lies_right(picture: np.ndarray, axis: int) -> None:
    """Assert that a picture is one of nibabel's slices, and less like any of them where it is mirrored or turned."""
    middle = canonical_shape()[axis] // 2
    slices = [object_of(canonical(axis, index)) for index in range(middle // 2, middle + middle // 2)]
    picture = object_of(picture)
    turns = (picture, picture[::-1], picture[:, ::-1], picture[::-1, ::-1])
    straight, *others = (max(alike(turned, one) for one in slices) for turned in turns)
    assert straight > 0.9 and 2 * (1 - straight) < 1 - max(others), (axis, straight, others)


def choose(browser: Any, name: str) -> None:
    next(tab for tab in browser.find_elements("css selector", "[role=tab]") if tab.text == name).click()


def wait(condition: Any, seconds: float = 60) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["test", "registration"])
def test_every_tab_shows_its_part_and_no_other(opened, name):
    browser = opened(name)
    tabs = browser.find_elements("css selector", "[role=tab]")
    assert tabs[0].text == ("Scores" if name == "test" else "Pair") and len(tabs) >= 3
    for tab in tabs:
        tab.click()
        visible = [part for part in browser.find_elements("css selector", "section") if part.is_displayed()]
        assert [part.get_attribute("aria-labelledby") for part in visible] == [tab.get_attribute("id")]
        for plot in visible[0].find_elements("css selector", "svg.plot"):
            assert plot.size["height"] > 150 and shot(plot).std() > 10, "a plot is blank"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_those_that_the_reader_prefers(opened, scheme):
    browser = opened("test")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        _check_colours(browser, scheme)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _check_colours(browser: Any, scheme: str) -> None:
    paper, ink = (
        np.mean(
            [int(x) for x in browser.execute_script(f"return getComputedStyle(document.body).{what}")[4:-1].split(",")]
        )
        for what in ("backgroundColor", "color")
    )
    assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)
    plot = browser.find_element("css selector", "svg.plot")
    colour = browser.execute_script("return getComputedStyle(arguments[0].querySelector('text')).fill", plot)
    assert colour == browser.execute_script("return getComputedStyle(document.body).color"), "letters of a plot"


def test_nothing_is_wider_than_a_telephone(opened):
    browser = opened("test")
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for tab in browser.find_elements("css selector", "[role=tab]"):
            tab.click()
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, tab.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_panels_lie_as_nibabel_has_them(opened):
    browser = opened("registration")
    browser.execute_script(
        "document.head.append(Object.assign(document.createElement('style'), {textContent: arguments[0]}))", PLAIN
    )
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        browser.find_element("css selector", f"button.slice[data-slice={name}]").click()
        panels = browser.find_elements("css selector", f".panels[data-slice={name}] figure")
        assert len(panels) >= 10 and all(panel.is_displayed() for panel in panels)
        picture = panels[0].find_element("css selector", "svg")
        lies_right(shot(picture)[3:-3, 3:-3], axis)
        height = nib.as_closest_canonical(nib.Nifti1Image(*stored())).header.get_zooms()
        extent = [n * s for a, (n, s) in enumerate(zip(canonical_shape(), height, strict=True)) if a != axis]
        # a panel that is higher than 24rem is wider than its picture, which then lies between dark margins
        image = picture.find_element("css selector", "image").size
        assert image["width"] / image["height"] == pytest.approx(extent[0] / extent[1], rel=1e-3)
        filled = [image[side] / picture.size[side] for side in ("width", "height")]
        assert max(filled) == pytest.approx(1, abs=1e-3) and min(filled) > 0.9


def canonical_shape() -> tuple[int, ...]:
    return nib.as_closest_canonical(nib.Nifti1Image(*stored())).shape


def test_the_viewer_shows_the_pair_where_it_lies_and_obeys(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened("test")
    choose(browser, "Pairs")
    box = browser.find_element("css selector", ".viewer")
    box.find_element("css selector", ".open").click()
    wait(lambda: box.get_attribute("data-ready") is not None)
    assert box.get_attribute("data-ready") == "true", box.text
    canvas, slider = box.find_element("css selector", "canvas"), box.find_element("css selector", "input[type=range]")

    def settled() -> np.ndarray:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        return shot(canvas)[12:-12, 12:-12]  # without rounded corners

    half = settled()
    assert half.std() > 10, "three planes"
    slider.send_keys(Keys.HOME)
    assert box.find_element("css selector", "output").text == "0 %"
    fixed = settled()
    assert np.abs(fixed - half).max() > 20, "the slider changes what is shown"
    hide = "Object.assign(arguments[0].nv.opts, {isOrientationTextVisible: false, isCornerOrientationText: false})"
    browser.execute_script(f"arguments[0].nv.setCrosshairWidth(0); {hide}", box)
    select = box.find_element("css selector", "[name=view]")
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", select, name
        )
        lies_right(settled(), axis)
    plain = settled()
    for what in ("labels", "grid"):
        box.find_element("css selector", f"[name={what}]").click()
        lines = settled()
        assert np.abs(lines - plain).max() > 50, what
        plain = lines
    box.find_element("css selector", "[name=toggle]").click()
    assert box.find_element("css selector", "output").text == "100 %"
