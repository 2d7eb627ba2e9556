"""The docs site: builds without a warning, asks no other server for anything, fits small windows; links work."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import dinounet
from browser import Browser
from dinounet.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LOADED = re.compile(r"<(?:script|img|iframe|source|video|object|embed)[^>]+?(?:src|data)=[\"']?([^\"' >]+)|<link[^>]+>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly, where a warning (a dead link, a page that is in no menu) is an error."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    build(config)
    return folder


@pytest.mark.slow
def test_every_page_verb_and_name_is_in_the_site(site: Path) -> None:
    made = {path.stem for path in site.glob("*.html")}
    assert {page.stem.lower() for page in PAGES if page.stem != "README"} | {"index", "commands", "api"} <= made
    commands = (site / "commands.html").read_text()
    assert all(f'id="dinounet-{verb}"' in commands for verb in VERBS)
    assert "--checkpoint-minutes" in commands
    api = (site / "api.html").read_text()
    for name in dinounet.__all__:
        home = dinounet._HOMES.get(name, "dinounet.errors")
        assert f'id="{home}.{name}"' in api, f"{name} has no entry"
    assert "src/dinounet/network/dinounet.py" in (site / "design.html").read_text()
    assert (site / "repository" / "src" / "dinounet" / "network" / "dinounet.py").is_file()


@pytest.mark.slow
def test_no_page_names_another_server_to_load_from(site: Path) -> None:
    for page in site.rglob("*.html"):
        for match in LOADED.finditer(page.read_text()):
            source = match[1] or match[0]
            if 'rel="canonical"' not in source:
                assert "//" not in source, f"{page.name} loads {source}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.slow
def test_in_a_browser_it_asks_nobody_and_fits_the_window(site: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        for width, pages in ((400, "*.html"), (1400, "[ac]*.html")):
            browser.resize(width)
            for page in sorted(site.glob(pages)):
                browser.open(page)
                assert browser.run("document.querySelector('h1').innerText")
                assert browser.run("document.documentElement.scrollWidth") <= width, (page.name, width)
                asked = {sent["request"]["url"] for sent in browser.happened("Network.requestWillBeSent")}
                assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    finally:
        browser.close()


def test_links_between_files_work_on_github() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
            path = page.parent / target if target else page
            made = page.parent == ROOT / "docs" and target in ("commands.md", "api.md")
            assert path.exists() or made, f"{page.name}: {target} is not there"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{page.name}: {target}#{anchor} is not there"
