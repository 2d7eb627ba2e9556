"""`dinounet push`: a bundle to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from dinounet.schema.arguments import checked


@checked
def push(
    bundle: Path,
    repository: str,
    /,
    *,
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Upload a bundle to the Hugging Face Hub, where others find it as hf://user/name.

    Log in before by `hf auth login`, or set HF_TOKEN. Weights, model.json and the model card go up in one commit; the
    backbone's weights don't.

    Args:
        bundle: Folder that `dinounet export` or `dinounet import` wrote.
        repository: Name on the Hub, user/name or hf://user/name; made if it is not there.
        revision: Branch to put it on, made if it is not there; by default main.
        private: If the repository is made now, show it to its owners only.

    Returns:
        Its address.
    """
    from dinounet.bundle.hub import push_bundle

    return push_bundle(Path(bundle), repository, revision=revision, private=private)
