"""Reports in a real browser, from disk: tabs and viewer work, nothing complains, pictures lie as they should."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from shown import Pages, original

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the extra dev)")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="needs Debian's chromium and chromium-driver"
)
PLAIN = ".panel text { display: none } .panel svg { border-radius: 0 !important }"
"""Takes letters and round corners off pictures, which nibabel does not have."""
OPTIONS = [
    *("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    *("--disable-dev-shm-usage", "--window-size=1200,900", "--force-device-scale-factor=1"),
]


REAL = [pytest.param(name, marks=pytest.mark.real) for name in ("brains", "register")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """One browser for all tests, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.pages = Pages(tmp_path_factory.mktemp("pages with a blank"))
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


def canonical(name: str, axis: int, index: int) -> np.ndarray:
    """A slice across an axis as nibabel has it: right or anterior to the right, anterior or superior at the top."""
    return np.asarray(nib.as_closest_canonical(original(name)).dataobj).take(index, axis).T[::-1]


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


def lies_right(picture: np.ndarray, name: str, axis: int) -> None:
    """Assert that a picture is one of nibabel's slices, and less like any of them where it is mirrored or turned."""
    middle = nib.as_closest_canonical(original(name)).shape[axis] // 2
    slices = [object_of(canonical(name, axis, index)) for index in range(middle // 2, middle + middle // 2)]
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


@pytest.mark.parametrize("name", ["demo", *REAL])
def test_every_tab_shows_its_part_and_no_other(opened, name):
    browser = opened(name)
    tabs = browser.find_elements("css selector", "[role=tab]")
    assert tabs[0].text == ("Pair" if name == "register" else "Scores") and len(tabs) >= 3
    for tab in tabs:
        tab.click()
        visible = [part for part in browser.find_elements("css selector", "section") if part.is_displayed()]
        assert [part.get_attribute("aria-labelledby") for part in visible] == [tab.get_attribute("id")]
        for plot in visible[0].find_elements("css selector", "svg.plot"):
            assert plot.size["height"] > 150 and shot(plot).std() > 10, "a plot is blank"
        for panel in visible[0].find_elements("css selector", ".panels:not(.off) svg")[:11:5]:
            assert panel.size["height"] > 100 and shot(panel).std() > 5, "a panel is blank"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_those_that_the_reader_prefers(opened, scheme):
    browser = opened("demo")
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


@pytest.mark.parametrize("name", ["demo", *REAL])
def test_nothing_is_wider_than_a_telephone(opened, name):
    browser = opened(name)
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for tab in browser.find_elements("css selector", "[role=tab]"):
            tab.click()
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, tab.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("name", REAL)
def test_panels_lie_as_nibabel_has_them(opened, name):
    browser = opened(name)
    if name == "brains":
        choose(browser, "Pairs")
    browser.execute_script(
        "document.head.append(Object.assign(document.createElement('style'), {textContent: arguments[0]}))", PLAIN
    )
    image = nib.as_closest_canonical(original(name))
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        browser.find_element("css selector", f"button.slice[data-slice={plane}]").click()
        panels = browser.find_elements("css selector", f".panels[data-slice={plane}] figure")
        assert len(panels) >= 10 and all(panel.is_displayed() for panel in panels)
        picture = panels[0].find_element("css selector", "svg")
        lies_right(shot(picture)[3:-3, 3:-3], name, axis)
        sides = zip(image.shape, image.header.get_zooms(), strict=True)
        extent = [n * s for a, (n, s) in enumerate(sides) if a != axis]
        # a panel that is higher than 24rem is wider than its picture, which then lies between dark margins
        raster = picture.find_element("css selector", "image").size
        assert raster["width"] / raster["height"] == pytest.approx(extent[0] / extent[1], rel=1e-2)
        filled = [raster[side] / picture.size[side] for side in ("width", "height")]
        assert max(filled) == pytest.approx(1, abs=1e-2) and min(filled) > 0.9


class Viewer:
    """The interactive view of a page's first pair, opened."""

    def __init__(self, browser: Any) -> None:
        self.browser, self.box = browser, browser.find_element("css selector", ".viewer")
        self.box.find_element("css selector", ".open").click()
        wait(lambda: self.box.get_attribute("data-ready") is not None)
        assert self.box.get_attribute("data-ready") == "true", self.box.text
        self.screen = self.box.find_element("css selector", ".screen")

    def __getitem__(self, name: str) -> Any:
        return self.box.find_element("css selector", f"[name={name}]")

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"const [back, front] = arguments[0].scenes; {script}", self.box)

    def choose(self, name: str, value: str) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))"
        self.browser.execute_script(script, self[name], value)

    def slide(self, value: int) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self["opacity"], value)

    def shot(self) -> np.ndarray:
        """What is drawn, without the line of the swipe and rounded corners."""
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.screen)
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        return shot(self.screen)[12:-12, 12:-12]


def swipes(view: Viewer) -> None:
    """Assert that a swipe shows one image on each side of its line, and that its two canvases move together."""
    view.slide(0)
    fixed = view.shot()
    view.slide(100)
    warped = view.shot()
    assert np.abs(fixed - warped).mean() > 2
    view.choose("how", "swipe")
    wait(lambda: view.box.get_attribute("data-how") == "swipe")
    view.run("front.nv.setCrosshairWidth(0); front.nv.opts.isOrientationTextVisible = false")
    view.run(
        "document.querySelectorAll('.side').forEach((one) => one.remove()); front.nv.drawScene(); back.nv.drawScene()"
    )
    view.slide(50)
    both, middle = view.shot(), fixed.shape[1] // 2
    np.testing.assert_allclose(both[:, : middle - 20], warped[:, : middle - 20], atol=3)
    np.testing.assert_allclose(both[:, middle + 20 :], fixed[:, middle + 20 :], atol=3)
    view.run("back.nv.scene.crosshairPos = [0.4, 0.6, 0.3]; back.nv.drawScene()")
    assert view.run("return [...front.nv.scene.crosshairPos]") == pytest.approx([0.4, 0.6, 0.3])


@pytest.mark.real
def test_the_viewer_shows_the_pair_where_it_lies_and_obeys(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    view = Viewer(opened("register"))
    half = view.shot()
    assert half.std() > 10, "three planes"
    view.slide(0)
    assert view.box.find_element("css selector", "output").text == "0 %"
    assert np.abs(view.shot() - half).max() > 20, "the slider changes what is shown"
    before, place = view.run("return [...back.nv.scene.crosshairPos]"), view.box.find_element("css selector", ".place")
    ActionChains(view.browser).move_to_element_with_offset(view.screen, -60, 20).click().perform()
    after = view.run("return [...back.nv.scene.crosshairPos]")
    assert sum(abs(a - b) > 0.01 for a, b in zip(before, after, strict=True)) == 2, "one plane was clicked"
    mm = [float(x) for x in place.text.removeprefix("R, A, S: ").removesuffix(" mm").split(",")]
    assert mm == pytest.approx(view.run("return [...back.nv.frac2mm(back.nv.scene.crosshairPos)]")[:3], abs=0.06)
    hide = "Object.assign(back.nv.opts, {isOrientationTextVisible: false, isCornerOrientationText: false})"
    view.run(f"back.nv.setCrosshairWidth(0); {hide}")
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        view.choose("view", name)
        lies_right(view.shot(), "register", axis)
    plain = view.shot()
    for what in ("labels", "grid"):
        view[what].click()
        lines = view.shot()
        assert np.abs(lines - plain).max() > 50, what
        plain = lines
    view["toggle"].click()
    assert view.box.find_element("css selector", "output").text == "100 %"
    view["labels"].click()
    view["grid"].click()
    view.choose("view", "three")
    swipes(view)
