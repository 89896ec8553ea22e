"""The report in a real browser: no error, all figures visible, nothing wider than the window."""

import shutil
from itertools import pairwise

import pytest

from sigmoid_attention.report.page import render
from tests.support.studies.synthetic_comparison import NO_KERNEL, synthetic_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CASES = {
    "3-seeds": {},
    "11-seeds": {"seeds": 11},
    "1-seed-diverged": {"seeds": 1, "stopped": ("sigmoid", 0, 90), "without": ("operator",)},
    "no-kernel": {"operator": NO_KERNEL},
    "all-or-nothing": {"seeds": 4, "fails": (0, 2)},
}
# Boxes of every figure's panels and of the words in them, in CSS pixels of the window.
BOXES = """
const box = e => { const b = e.getBoundingClientRect();
                   return [b.left, b.right, b.top, b.bottom]; };
return [...document.querySelectorAll('.panels svg')].map(svg => ({
    name: svg.getAttribute('aria-label'),
    box: box(svg),
    shown: svg.checkVisibility({opacityProperty: true, visibilityProperty: true}),
    texts: [...svg.querySelectorAll('text')].map(t => [t.textContent, box(t)]),
    ticks: [...svg.querySelectorAll('.tick.x')].map(box),
}));
"""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")

    def path(case: str):
        file = folder / f"{case}.html"
        if not file.exists():
            render(synthetic_comparison(**CASES[case]), file)
        return file

    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400], ids=lambda width: f"{width}px")
@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_in_sight(browser, report, case, width, scheme):
    # The window itself cannot be made narrower than 500 px; the page's metrics can.
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    preference = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
    browser.get(report(case).as_uri())

    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    figures = browser.execute_script("return document.querySelectorAll('.panels').length")
    assert figures == (7 if case == "1-seed-diverged" else 8)
    panels = browser.execute_script(BOXES)
    assert len(panels) >= 2 * figures - 2
    for panel in panels:
        left, right, top, bottom = panel["box"]
        assert panel["shown"], panel["name"]
        assert right - left > 250 and bottom - top > 150, panel["name"]
        assert left >= 0 and right <= width, panel["name"]
        for text, (start, end, high, low) in panel["texts"]:
            assert left - 1 <= start and end <= right + 1, (panel["name"], text)
            assert top - 1 <= high and low <= bottom + 1, (panel["name"], text)
        # Neighbouring labels on the horizontal axis leave a gap between them.
        ticks = panel["ticks"]
        assert all(a[1] < b[0] for a, b in pairwise(ticks)), panel["name"]


VERDICTS = """
return [...document.querySelectorAll('.summary tbody .reading')].map(e => {
    const b = e.getBoundingClientRect();
    return [e.textContent, b.left, b.right, b.height, e.closest('.scroll').scrollLeft];
});
"""


@pytest.mark.parametrize("width", [1200, 400], ids=lambda width: f"{width}px")
@pytest.mark.parametrize("case", CASES)
def test_every_verdict_is_read_without_scrolling_sideways(browser, report, case, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report(case).as_uri())
    verdicts = browser.execute_script(VERDICTS)
    assert len(verdicts) > 5
    for text, left, right, height, scrolled in verdicts:
        assert text and left >= 0 and right <= width and height > 10 and scrolled == 0, text
    # The numbers beside them as well: no box has anything to scroll to.
    script = "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth)"
    assert all(wide <= width for wide in browser.execute_script(script))


@pytest.mark.parametrize("case", CASES)
def test_every_link_leads_somewhere(browser, report, case):
    browser.get(report(case).as_uri())
    script = "return [...document.querySelectorAll('a')].filter(a => a.hash && "
    script += "!document.getElementById(a.hash.slice(1))).map(a => a.hash)"
    assert browser.execute_script(script) == []


def test_dark_is_dark(browser, report):
    def lightness(scheme: str) -> int:
        preference = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
        browser.get(report("3-seeds").as_uri())
        script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        return sum(browser.execute_script(script))

    assert lightness("dark") < 150 < 600 < lightness("light")
