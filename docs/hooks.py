"""What the site has beside the pages in docs/: each is made from its one source when the site is built.

The README is the first page; CONTRIBUTING.md and CHANGELOG.md are pages; the commands are what `--help` says; the API
is what the package exports; and files of the repository that pages link to lie in the site too.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import dinounet
from dinounet.cli.main import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Of the repository's root, and what they are called in the site."""

WIDTH = 80
"""Characters of a line of help."""

TITLE = re.compile(r"\W*(positional arguments|options)\W")
"""Of the list of flags, before which a verb says in sentences what it does."""

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""To a file: its path, and the anchor in it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made: dict[str, str | bytes] = {site: (ROOT / file).read_text() for file, site in PAGES.items()}
    made |= {"commands.md": _commands(), "api.md": _api()}
    for file in [*files.documentation_pages(), *(File.generated(config, name, content=made[name]) for name in made)]:
        for target, _ in LINK.findall(file.content_string):
            path = _in_repository(file.src_uri, target)
            if path.is_file() and not path.is_relative_to(ROOT / "docs") and path.name not in PAGES:
                made[f"repository/{path.relative_to(ROOT).as_posix()}"] = path.read_bytes()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are in the repository become links in the site."""

    def lead(link: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, link[1])
        if path.is_relative_to(ROOT / "docs"):
            target = path.relative_to(ROOT / "docs").as_posix()
        else:
            target = PAGES.get(path.name) or f"repository/{path.relative_to(ROOT).as_posix()}"
        return f"]({target}{link[2] or ''})"

    return LINK.sub(lead, markdown)


def _in_repository(page: str, target: str) -> Path:
    """The file that a page's link means; all pages of the site lie in one folder."""
    folder = ROOT if page in PAGES.values() else ROOT / "docs"
    return (folder / target).resolve()


def _commands() -> str:
    parts = ["# Commands\n\nWhat `dinounet VERB --help` says.\n"]
    for verb in VERBS:
        told = io.StringIO()
        wide = patch.dict(os.environ, COLUMNS=str(WIDTH))
        with wide, contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            main([verb, "--help"])
        usage, *texts = told.getvalue().strip().split("\n\n")
        flags = next(place for place, text in enumerate(texts) if TITLE.match(text))
        parts += [f"## dinounet {verb}", *texts[:flags], "\n".join(["```text", usage, "", *texts[flags:], "```"])]
    return "\n\n".join(parts)


def _api() -> str:
    parts = ["# API\n\nWhat `import dinounet` gives, from the docstrings. [In Python](python.md) shows it at work.\n"]
    for name in sorted(dinounet.__all__, key=lambda name: (name in VERBS or name == "import_", name.lower())):
        home = dinounet._HOMES.get(name, "dinounet.errors")
        parts.append(f'::: {home}.{name}\n    options:\n      heading: "dinounet.{name}"\n      toc_label: "{name}"\n')
    return "\n".join(parts)
