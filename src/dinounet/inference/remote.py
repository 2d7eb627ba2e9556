"""Bundles on the Hugging Face Hub: named user/name, or user/name@revision, and kept in the Hub's own cache.

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

_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


def is_on_hub(name: str | Path) -> bool:
    """Whether it names a bundle on the Hub: it could, and nothing on this machine has that name."""
    return not Path(name).exists() and _ID.fullmatch(Path(name).as_posix()) is not None


def fetch_record(name: str | Path, revision: str | None = None) -> Path:
    """The folder in the Hub's cache with a bundle's record; its name is that of the commit.

    Raises:
        UserError: two revisions are given, there is no such bundle, or it can't be had.
    """
    found = _ID.fullmatch(Path(name).as_posix())
    assert found is not None
    repository, named = found.groups()
    if revision and named and revision != named:
        raise ConfigError(f"{name} names the revision {named}, and the other one given is {revision}; give one")
    return _fetch(repository, BUNDLE, revision or named).parent


def fetch_weights(name: str | Path, folder: Path) -> None:
    """Download the files of weights, of the commit that the record in this folder is of."""
    repository = Path(name).as_posix().partition("@")[0]
    for file in read_bundle(folder).files:
        _fetch(repository, file, folder.name)


def describe(name: str | Path, folder: Path) -> str:
    """The bundle's name with its commit."""
    return f"{Path(name).as_posix().partition('@')[0]}@{folder.name}"


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
                f"{repository} is no folder here, and the Hugging Face Hub shows nothing of that name; check it, and "
                "if it is private set HF_TOKEN"
            ) from None
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise DataError(f"{where} holds no {file}, so it is no bundle of dinounet's; name another") from None
        raise DataError(
            f"{repository} is no folder here, and can't be had from the Hugging Face Hub: "
            f"{explain(error, repository)}, or download its files elsewhere and name their folder"
        ) from None
