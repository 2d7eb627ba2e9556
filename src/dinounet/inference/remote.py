"""Bundles on the Hugging Face Hub: named hf://user/name, or hf://user/name@revision, and kept in the Hub's own cache.

Nothing else is looked up there: whoever mistypes a path of two parts, such as runs/patient_x, tells nobody its name.
Without a revision the Hub is asked for the newest; where there is no connection, or HF_HUB_OFFLINE is set, the newest
that was downloaded is taken, and told. A commit's name means one content for ever: once it is there, nobody is asked.
"""

from __future__ import annotations

import re
from pathlib import Path

from dinounet.errors import ConfigError, DataError
from dinounet.inference.bundle import BUNDLE, read_bundle
from dinounet.network.hub import NO_CONNECTION, cached, explain, fetch
from dinounet.progress import say

HUB = "hf://"

_ON_HUB = re.compile(r"hf:[/\\]+")
"""How a name on the Hub begins; of two slashes a path keeps one, which on Windows is turned."""

_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


def is_on_hub(name: str | Path) -> bool:
    """Whether it is meant for a bundle on the Hub."""
    return _ON_HUB.match(str(name)) is not None


def missing(path: Path) -> DataError:
    """The error for a run or bundle that isn't there, which offers the Hub's name if it could be one."""
    meant = path.as_posix()
    hub = f", or {HUB}{meant} for a bundle on the Hugging Face Hub" if _ID.fullmatch(meant) else ""
    return DataError(f"{path} does not exist; give the folder that `dinounet train` or `dinounet export` wrote{hub}")


def fetch_record(name: str | Path, revision: str | None = None) -> Path:
    """The folder in the Hub's cache with a bundle's record; its name is that of the commit.

    Raises:
        UserError: the name is none or names another revision, there is no such bundle, or it can't be had.
    """
    repository, named = _parse(name)
    if revision and named and revision != named:
        raise ConfigError(
            f"{HUB}{repository}@{named} names the revision {named}, and the other one given is {revision}; give one"
        )
    return _fetch(repository, BUNDLE, revision or named).parent


def fetch_weights(name: str | Path, folder: Path) -> None:
    """Download the files of weights, of the commit that the record in this folder is of."""
    repository, _ = _parse(name)
    for file in read_bundle(folder).files:
        _fetch(repository, file, folder.name)


def describe(name: str | Path, folder: Path) -> str:
    """The bundle's name with its commit."""
    return f"{HUB}{_parse(name)[0]}@{folder.name}"


def _parse(name: str | Path) -> tuple[str, str | None]:
    """Repository and revision, if it is named."""
    found = _ID.fullmatch(_ON_HUB.sub("", str(name), count=1).replace("\\", "/"))
    if found is None:
        raise ConfigError(
            f"{name} names no bundle on the Hugging Face Hub; write {HUB}user/name or {HUB}user/name@REVISION"
        )
    repository, revision = found.groups()
    return repository, revision


def _fetch(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = cached(repository, file, revision)
    if known and revision and _COMMIT.fullmatch(revision):
        return known
    try:
        return fetch(repository, file, revision)
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and the system's
        where, kind = f"{repository} on the Hugging Face Hub", type(error).__name__
        if known and (isinstance(error, OfflineModeIsEnabled) or kind in NO_CONNECTION):
            say("hub", f"no connection to the Hub: {repository} is as it was downloaded", commit=known.parent.name)
            return known
        if isinstance(error, RevisionNotFoundError):
            raise ConfigError(f"{where} has no revision {revision}; name a branch, a tag or a commit of it") from None
        if isinstance(error, RepositoryNotFoundError):
            raise DataError(
                f"the Hugging Face Hub shows nothing of the name {repository}; check it, and set "
                "HF_TOKEN if it is private"
            ) from None
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise DataError(f"{where} holds no {file}, so it is no bundle of dinounet's; name another") from None
        raise DataError(
            f"{repository} can't be had from the Hugging Face Hub: "
            f"{explain(error, repository)}, or download its files elsewhere and name their folder"
        ) from None
