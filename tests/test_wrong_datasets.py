"""Wrong datasets: each is answered by one sentence that names the file and the remedy, and nothing is left behind."""

import hashlib
import tempfile
from pathlib import Path

import pytest

import wrong_descriptions  # noqa: F401 -- enters its datasets into the corpus
import wrong_pixels  # noqa: F401
from dinounet.cli.main import main
from dinounet.training import session  # noqa: F401 -- so that torch leaves its temporary folder before we look
from wrong_datasets import CORPUS, Wrong


def content_of(folder: Path) -> dict[str, str]:
    """What lies in a folder and below: names, and hashes of files or targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with room for temporary files, in which the command runs."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dinounet.plans.make_plan", lambda *_: pytest.fail("a wrong dataset was accepted"))
    return tmp_path


def write(wrong: Wrong, root: Path) -> Path:
    """Make a wrong dataset; returns what the command is to be given."""
    root.mkdir()
    wrong.base(root)
    wrong.spoil(root)
    return root / wrong.data if wrong.data else root


@pytest.mark.parametrize("name", CORPUS)
def test_a_wrong_dataset_is_answered(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = CORPUS[name]
    data = write(wrong, place / "wrong")
    before = content_of(place)
    code = main(["plan", str(data), "-o", "plan.json", *wrong.flags])
    told = capfd.readouterr().err
    assert code == 2, told
    assert told.startswith("dinounet: ")
    assert told.count("\n") == 1, told
    for word in wrong.words:
        assert word in told
    assert content_of(place) == before, "something was left behind"
