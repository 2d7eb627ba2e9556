"""Bundles on the Hugging Face Hub: named hf://user/name or hf://user/name@revision, fetched and pushed."""

from __future__ import annotations

import re
from pathlib import Path

from dinounet.backbones.hub import NO_CONNECTION, cached, explain, fetch
from dinounet.bundle.card import make_card, read_kept
from dinounet.bundle.verify import checked_weights, read_bundle
from dinounet.console import say
from dinounet.errors import ConfigError, DataError
from dinounet.schema.bundle import BUNDLE, CARD

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
                f"the Hugging Face Hub has no visible repository {repository}; check the name, and set "
                "HF_TOKEN if it is private"
            ) from None
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise DataError(f"{where} holds no {file}, so it is no bundle of dinounet's; name another") from None
        raise DataError(
            f"{repository} cannot be downloaded from the Hugging Face Hub: "
            f"{explain(error, repository)}, or download its files elsewhere and name their folder"
        ) from None


def push_bundle(bundle: Path, repository: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload a bundle; the card there names the repository, and the backbone's weights, if any, stay here.

    Args:
        bundle: folder, which is checked before.
        repository: user/name, or hf://user/name; made if it isn't there.
        revision: branch, made if it isn't there; by default main.
        private: whether a repository that is made now can be seen by its owners only.

    Returns:
        Its address.

    Raises:
        UserError: the bundle is damaged, the name is none, or the Hub refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository = repository.removeprefix(HUB)
    record = read_bundle(bundle)
    weights = checked_weights(bundle, record)
    card = make_card(record, read_kept(bundle / CARD), repository)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise ConfigError("the name on the Hub must be user/name, of letters, digits, '-', '_' and '.'; give another")
    files = {BUNDLE: bundle / BUNDLE, **{path.name: path for path in weights}}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(CARD, card.encode()),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
    ]
    hub = HfApi(endpoint=constants.ENDPOINT)
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if revision:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        there = hub.list_repo_files(repository, revision=revision)
        left = [name for name in there if Path(name).match("model*.safetensors") and name not in files]
        operations += [CommitOperationDelete(name) for name in left]  # of a bundle of more networks
        words = f"Bundle of dinounet {record.versions.get('dinounet', '')}".strip()
        done = hub.create_commit(repository, operations, commit_message=words, revision=revision)
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and the system's
        raise ConfigError(f"{bundle} can't be pushed to {repository}: {_explain(error, repository)}") from None
    address = f"{constants.ENDPOINT}/{repository}"
    name = f"{HUB}{repository}" + (f"@{revision}" if revision else "")
    say(
        "pushed",
        f"{address}, commit {done.oid}; to predict: dinounet predict {name} IMAGES -o MASKS",
        address=address,
        commit=done.oid,
        name=name,
    )
    return address


def _explain(error: Exception, repository: str) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return f"{constants.ENDPOINT} doesn't know who you are; log in by `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "you may not write there; check the name, and that your token may write"
    return explain(error, repository)
