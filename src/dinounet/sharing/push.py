"""Bundles to the Hugging Face Hub, by its own client: one commit, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from dinounet.errors import ConfigError
from dinounet.inference.bundle import BUNDLE, CARD, checked_weights, read_bundle
from dinounet.inference.remote import HUB
from dinounet.network.hub import explain
from dinounet.progress import say
from dinounet.sharing.card import make_card, read_kept


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
        f"{address}, commit {done.oid}; it predicts by: dinounet predict {name} IMAGES -o MASKS",
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
