"""Errors that a user can act on.

Each message is one sentence: what is wrong, where, and what to do. The command line prints it after the name of the
program and exits with 2; anything else that is raised is our failure and exits with 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The input or the command is wrong; the message says what, where and what to do."""


class ConfigError(UserError):
    """A setting is wrong: a value out of range, an unknown key, a name that nothing has."""


class DataError(UserError):
    """A dataset, image or mask is wrong."""


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Puts what a DataError in the block says among the problems, so that whoever looks on finds the others too."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))


def reason_of(error: BaseException, line: int = 0) -> str:
    """What another package's error says, in one line, the first by default; its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[line].strip()


class UnreachableError(UserError):
    """A file can't be read although it is there, also when tried again: the network, or its server, has gone."""


class WeightsError(UserError):
    """Weights are missing, can't be reached, or don't fit the network they are meant for."""


class MissingPackage(ConfigError, ImportError):
    """A package that an optional part of dinounet needs isn't installed; the message names the extra that brings it."""


BROUGHT_BY = {
    **dict.fromkeys(
        ("torch", "timm", "lightning_fabric", "batchgenerators", "batchgeneratorsv2", "safetensors"),
        '"dinounet[train]"',
    ),
    **dict.fromkeys(("onnx", "onnxscript"), '"dinounet[export]"'),
    **dict.fromkeys(("tensorboard", "wandb", "mlflow"), '"dinounet[track]"'),
    "highdicom": '"dinounet[dicom]"',
    "nilearn": '"dinounet[demo]"',
    "nnunetv2": '"dinounet[nnunet]"',
    "onnxruntime": "onnxruntime",
}
"""What `pip install` brings a module by, of those that some installations lack."""


def missing_package(what: str, module: str, otherwise: str = "") -> MissingPackage:
    """The error of something that needs a module which isn't installed."""
    name = "PyTorch" if module == "torch" else module
    return MissingPackage(f"{what} needs {name}: pip install {BROUGHT_BY[module]}{otherwise}")


@contextmanager
def naming_the_extra(what: str, otherwise: str = "") -> Iterator[None]:
    """Replaces Python's error about an optional module, within the block or function, by one that says how to get it.

    Args:
        what: needs the module: the beginning of the sentence.
        otherwise: its end, where something can be done instead.

    Raises:
        MissingPackage: such a module isn't installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in BROUGHT_BY:
            raise
        raise missing_package(what, error.name, otherwise) from error


class Interrupted(UserError):
    """The user stopped it; the message says how to go on. The command line exits with 130, as shells expect."""
