"""The report as a browser shows it: alone, within its window, readable, and usable by keyboard, script or not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import Browser
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.reporting.case_images import make_pictures
from dinounet.reporting.report import write_report
from dinounet.schema.metrics import Bin, Calibration
from test_report import LOG, RUN

pytestmark = pytest.mark.slow

CASES = 40
"""More than stand in an open table."""
LONG = "a_name_that_nobody_would_ever_give_to_a_case_but_some_system_does"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    folders = {name: root / name for name in ("predictions", "truth", "images")}
    for folder in folders.values():
        folder.mkdir()
    truth = np.zeros((40, 60), np.uint8)
    truth[5:20, 5:25], truth[10:30, 30:50] = 1, 2
    for index in range(CASES):
        prediction = np.roll(truth, index % 10, axis=index % 2)
        if index == 7:
            prediction = np.where(prediction == 2, 0, prediction)
        name = LONG if index == 7 else f"case_{index}"
        Image.fromarray(truth).save(folders["truth"] / f"{name}.png")
        Image.fromarray(prediction).save(folders["predictions"] / f"{name}.png")
        Image.fromarray(truth * 100).save(folders["images"] / f"{name}.png")
    labels = {"background": 0, "grey": 1, "a class with a rather long name, of several words": 2}
    metrics = evaluate_folders(folders["predictions"], folders["truth"], labels)
    bins = (Bin(0, 0.5, 0, None, None), Bin(0.5, 1, 10, 0.9, 0.8))
    pictures = make_pictures(metrics, **folders)
    metrics = replace(metrics, calibration=Calibration(bins, 0.1, 10))
    write_report(
        root / "report.html", title="Everything", metrics=metrics, pictures=pictures, run=RUN, log=LOG, notes=["Mind."]
    )
    return root / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def plain(browser: Browser):
    browser.resize(1600)
    browser.prefer("light")
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def complaints(browser: Browser) -> list[dict]:
    return browser.happened("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def requests(browser: Browser) -> list[str]:
    urls = [told["request"]["url"] for told in browser.happened("Network.requestWillBeSent")]
    return [url for url in urls if not url.startswith("data:")]


def shown(browser: Browser) -> dict:
    return json.loads(
        browser.run("""JSON.stringify({
            open: document.querySelector("dialog").open,
            case: document.getElementById("large-case").textContent,
            picture: document.querySelector("dialog [aria-pressed=true]")?.textContent,
            words: document.querySelector("#large-picture svg")?.getAttribute("aria-label"),
            focus: document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent})""")
    )


def test_nothing_is_asked_for_and_nothing_complained_about(browser: Browser, page: Path) -> None:
    before = len(browser.asked)
    browser.open(page)
    browser.run("document.querySelector('.enlarge').click()")
    browser.run("scrollTo(0, 1e6)")
    assert shown(browser)["open"]
    assert complaints(browser) == []
    assert requests(browser) == [page.as_uri()]
    assert browser.asked[before:] == []


def test_a_page_that_asks_or_complains_would_be_noticed(browser: Browser, page: Path, tmp_path: Path) -> None:
    html = page.read_text(encoding="utf-8")
    altered = tmp_path / "altered.html"
    altered.write_text(html.replace("</body>", "<img src='http://a.invalid/x.png'><script>1</script></body>"))
    browser.open(altered)
    assert len(complaints(browser)) == 2  # the policy refuses both
    before = len(browser.asked)
    altered.write_text(
        html.replace("Content-Security-Policy", "x").replace("</body>", "<img src='http://a.invalid/x'>")
    )
    browser.open(altered)
    assert "http://a.invalid/x" in requests(browser)
    assert browser.asked[before:] == ["GET http://a.invalid/x HTTP/1.1"]


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width)
    browser.open(page)
    assert browser.run("innerWidth") == width
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.run("document.querySelector('.enlarge').click()")
    assert browser.run("document.querySelector('dialog').scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, page: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    browser.prefer(scheme)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    browser.run("document.querySelector('.enlarge').click()")
    found = json.loads(
        browser.run("""(() => {
            const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
                .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
                .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
            const behind = (element) => {
                for (; element; element = element.parentElement) {
                    const rgb = parts(getComputedStyle(element).backgroundColor);
                    if (rgb.length === 3 || rgb[3] === 1) return rgb;
                }
            };
            const found = {};
            for (const element of document.querySelectorAll("body *:not(svg *, script)")) {
                if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
                const pair = [parts(getComputedStyle(element).color), behind(element)];
                const [a, b] = pair.map(light).sort((x, y) => y - x);
                found[JSON.stringify(pair)] = [(a + 0.05) / (b + 0.05), element.textContent.slice(0, 40)];
            }
            return JSON.stringify(Object.values(found));
        })()""")
    )
    assert len(found) >= 5
    assert [one for one in found if one[0] < 4.5] == []
    assert any(one[0] > 10 for one in found)


def test_pictures_are_reached_and_leafed_through_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    cases = browser.run("[...document.querySelectorAll('article h3')].map((name) => name.textContent)")
    assert cases[0] == LONG and len(cases) == 12
    for _ in range(100):
        browser.press("Tab")
        if shown(browser)["focus"] == f"Large view of {LONG}":
            break
    browser.press("Enter")
    state = shown(browser)
    assert state["open"] and (state["case"], state["picture"]) == (LONG, "Errors")
    assert state["words"].startswith(f"{LONG}: ") and "missed" in state["words"]
    browser.press("ArrowRight")
    assert shown(browser)["case"] == cases[1]
    browser.press("ArrowDown")
    assert (shown(browser)["picture"], shown(browser)["words"]) == ("Image", f"{cases[1]}: the image")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert (shown(browser)["case"], shown(browser)["picture"]) == (cases[-1], "Image")
    for _ in range(12):  # Tab goes round among the large view's own buttons and the browser's
        browser.press("Tab")
        assert browser.run("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    browser.press("Escape")
    for _ in range(1000):  # until the page has heard of it
        if (state := shown(browser))["focus"] == f"Large view of {cases[-1]}":
            break
    assert not state["open"] and state["focus"] == f"Large view of {cases[-1]}"


def test_without_scripts_the_link_enlarges_the_case_in_its_place(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    width = "document.querySelector('.panel').getBoundingClientRect().width"
    before = browser.run(width)
    browser.run("document.querySelector('.enlarge').focus()")
    browser.press("Enter")
    assert not shown(browser)["open"]
    assert browser.run("location.hash") == "#case-1"
    assert browser.run(width) > 1.9 * before


def test_what_is_folded_away_is_printed(browser: Browser, page: Path) -> None:
    browser.open(page)
    visible = "[...document.querySelectorAll('details > :last-child')].map((part) => part.checkVisibility())"
    assert browser.run(visible) == [False] * 3  # the record, the diagram's numbers, the cases
    browser.run("document.querySelector('.enlarge').click()")
    browser.prefer(media="print")
    assert browser.run(visible) == [True] * 3
    assert browser.run("getComputedStyle(document.querySelector('dialog')).display") == "none"
    assert browser.run("document.querySelectorAll('.panel')[0].getBoundingClientRect().height") > 0
