"""Weights from the Hugging Face Hub, with its cache and offline mode; every failure is one sentence."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from dinounet.backbones.registry import BackboneVariant
from dinounet.errors import WeightsError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Beside weights that are too large for one file: which of several files holds which tensor."""

SECONDS_TO_ANSWER = 10

NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "ProxyError")
"""Errors of the client's HTTP library."""


def download(variant: BackboneVariant) -> Path:
    """The file with a backbone's weights in the Hub's cache, or the folder if they are several; downloaded if need be.

    Raises:
        WeightsError: there are none, or they can't be had; the message says why, and where to get them otherwise.
    """
    if variant.repository is None:
        raise WeightsError(
            f"there are no weights of {variant.name} on the Hugging Face Hub; pass a file of yours by --weights FILE, "
            "or choose another backbone"
        )
    from huggingface_hub.errors import EntryNotFoundError

    held = cached(variant.repository, FILE) or cached(variant.repository, INDEX)
    try:
        if held is None:
            try:
                held = _fetch(variant, FILE)
            except EntryNotFoundError:
                held = _fetch(variant, INDEX)
        if held.name == FILE:
            return held
        for shard in shards(held):
            _fetch(variant, shard)
    except EntryNotFoundError as error:
        raise _explain(error, variant) from None
    return held.parent


def shards(index: Path) -> list[str]:
    """The names of the files that an index lists.

    Raises:
        WeightsError: it is no such index, or names a file that isn't beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index} is not an index of weights; download it again") from None
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f"{index} names {name!r}, which isn't a file beside it; download it again")
    return names


def pages(variant: BackboneVariant) -> str:
    """Pages from which a backbone's weights can be downloaded by hand."""
    if variant.repository is None or variant.page.endswith(variant.repository):
        return variant.page
    return f"https://huggingface.co/{variant.repository} (the project: {variant.page})"


def cached(repository: str, file: str, revision: str | None = None) -> Path | None:
    """Path of a file in the Hub's cache; None if it was not downloaded yet."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None  # else it is unknown, or known not to exist


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """One file of a repository, asked for at the Hub and downloaded if the cache has another one.

    Errors are those of the Hub's client; `explain` puts them into words.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # a download would retry for long
    get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=SECONDS_TO_ANSWER)
    return Path(hf_hub_download(repository, file, revision=revision))


def _fetch(variant: BackboneVariant, file: str) -> Path:
    """One file of a backbone's repository, as it is in the cache.

    Raises:
        WeightsError: it can't be had.
        huggingface_hub.errors.EntryNotFoundError: the Hub answers that the repository has no such file.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = variant.repository
    assert repository is not None
    try:
        return cached(repository, file) or fetch(repository, file)
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and the system's
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise
        raise _explain(error, variant) from None


def _explain(error: Exception, variant: BackboneVariant) -> WeightsError:
    """What went wrong, what may help, and how to do without."""
    return WeightsError(
        f"the weights of {variant.name} cannot be downloaded from the Hugging Face Hub: "
        f"{explain(error, str(variant.repository), 4 * variant.frozen / 1e9)}, or download "
        f"{FILE} elsewhere from {pages(variant)} and pass it by --weights FILE"
    )


def explain(error: Exception, repository: str, size: float | None = None) -> str:
    """What went wrong at the Hub, and what may help.

    Args:
        error: that its client raised.
        repository: requested from the Hub.
        size: of the request in GB, if it is known.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    if isinstance(error, OfflineModeIsEnabled):
        reason = f"HF_HUB_OFFLINE is set and the cache {constants.HF_HUB_CACHE} does not hold them"
        remedy = "unset it"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        takes = f", and they take {size:.2g} GB" if size else ""
        reason = f"no space is left in {constants.HF_HUB_CACHE}{takes}"
        remedy = "free some, or set HF_HOME to a folder on another disk"
    elif status in (401, 403) and repository not in str(getattr(response, "url", "")):
        # it is not the Hub that answers, but the store that it led to
        reason = f"the link to the file has expired or is refused ({status})"
        remedy = "try again"
    elif status in (401, 403):
        reason = f"{repository} is not open to everybody, or no longer there ({status})"
        remedy = "ask for access on its page and set HF_TOKEN"
    elif status is not None:
        reason, remedy = f"it answers {text or status}", "try again later"
    elif "Consistency check" in text or "closed connection" in text or type(error).__name__ == "RemoteProtocolError":
        reason, remedy = "the download broke off", "try again"
    elif type(error).__name__ in NO_CONNECTION:
        reason, remedy = f"there is no connection to {constants.ENDPOINT} ({text})", "connect"
    else:
        reason, remedy = f"{type(error).__name__}: {text}", "try again"
    return f"{reason}; {remedy}"


def source_of(weights: str) -> str:
    """hub, random, or the file's absolute path: as a record names it."""
    return weights if weights in ("hub", "random") else str(Path(weights).absolute())
