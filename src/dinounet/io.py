"""Files that are either whole or absent, and JSON.

Every output is written under a temporary name beside its own and renamed when it is complete, so that neither an error
nor a kill leaves half a file that looks like a whole one.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shutil
import stat
import time
import typing
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from dinounet.errors import DataError, UnreachableError, UserError

PREDICTION = "prediction.json"
"""Among predicted masks: what made them. Written by `dinounet predict`, read by `dinounet evaluate`."""

PROBABILITIES = "probabilities"
"""Folder among predicted masks, on demand: `<case>.npz`. Written by `dinounet predict`, read by `dinounet evaluate`."""

METRICS = "metrics.json"
"""Among predicted masks: how good they are. Written by `dinounet evaluate`, read by `dinounet report`."""

LONGEST_NUMBER = 30
"""Digits of a whole number that is read from JSON."""

PARTIAL = ".partial-"
"""How the name of a folder begins that is being filled, or was when its process was killed."""

T = TypeVar("T")

PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "ENOLINK", "ECOMM", "EHOSTDOWN", "EHOSTUNREACH")
    if hasattr(errno, name)
)
"""Numbers of errors that a file system on a network has while its server, or the way there, is gone for a moment."""

SECONDS_BEFORE_TRYING_AGAIN = (0.5, 2.0, 8.0)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path (of the same ending) to write to; rename it to `path` if the block ends well."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)  # the system applies the umask, which can't be read unless set
        temporary.unlink()
        yield temporary
        temporary.chmod(usual)  # safetensors makes files that only their owner may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _write_through(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_patiently(path: Path, read: Callable[[], T]) -> T:
    """What `read` reads; where the file system fails in a way that passes, it is tried again, at most three times.

    Args:
        path: named in the error.
        read: which opens the file anew each time.

    Raises:
        UnreachableError: it failed so each time.
    """
    for seconds in SECONDS_BEFORE_TRYING_AGAIN:
        try:
            return read()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(seconds)
    try:
        return read()
    except Exception as error:
        if not is_passing(error):
            raise
        raise UnreachableError(
            f"{path} can't be read though it was tried {len(SECONDS_BEFORE_TRYING_AGAIN) + 1} times "
            f"({_root_of(error)}); check its disk, or the network connection to it"
        ) from None


def is_passing(error: BaseException | None) -> bool:
    """Whether an error is one of PASSING, or came of one: readers raise errors of their own about it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def _root_of(error: BaseException) -> str:
    """What the system calls a passing error."""
    while not isinstance(error, OSError) or error.errno not in PASSING:
        error = typing.cast(BaseException, error.__cause__ or error.__context__)
    return error.strerror or str(error)


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_write` and `atomic_dir` leave in a folder when their process is killed."""
    for path in folder.iterdir():
        if path.name.startswith(PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
        elif _is_leftover(path):
            path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    return re.fullmatch(r"\.\d+\..+|\.tmp\w{6}", path.name) is not None  # the latter is safetensors' own


def _write_through(folder: Path) -> None:
    """A new name survives a power cut once its folder is on the disk; Windows has no such call."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; rename it to `path`, which must not exist, if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    temporary.mkdir()  # not by tempfile, whose folders only their owner may read
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new(path: Path, *, what: str) -> None:
    """Make sure that an output folder can be made, without making it yet.

    Raises:
        UserError: something that is not an empty folder has that name already, or it can't be made there.
    """
    if path.exists() and (not path.is_dir() or not all(map(_is_leftover, path.iterdir()))):
        raise UserError(f"{path} exists already; give {what} another name with -o, or remove it")
    _require_place(path, path.parent, "-o")


def require_folder(path: Path, flag: str) -> None:
    """Make sure that a folder, named by this flag, can be written to, without making it yet.

    Raises:
        UserError: it is a file, or may not be written to.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder with {flag}")
    _require_place(path, path, flag)


def require_outside(path: Path, folder: Path, *, what: str, inside: str = "the dataset") -> None:
    """Make sure that an output doesn't go into the folder it is made from, which would then hold its pictures too.

    Raises:
        UserError: it does.
    """
    if folder.is_dir() and folder.resolve() in (path.resolve(), *path.resolve().parents):
        place = f"is the folder of {inside}" if path.resolve() == folder.resolve() else f"lies in {inside} {folder}"
        raise UserError(f"{path} {place}; give {what} a place outside of it with -o")


def require_file(path: Path) -> None:
    """Make sure that an output file can be written, which may replace an older one.

    Raises:
        UserError: a folder has that name, or it can't be made there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with -o")
    _require_place(path, path.parent, "-o")


def require_readable(path: Path) -> None:
    """Raise a DataError if the user may not read a file."""
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} is not readable; change its permissions")


def _require_place(path: Path, folder: Path, flag: str) -> None:
    """Raise a UserError if `path` can't be made, in this folder, which may have to be made first."""
    around = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise UserError(f"cannot create {path}: {around} is not a writable directory; choose another with {flag}")


def read_text(path: Path, *, unreadable: str, no_text: str) -> str:
    """The content of a text file in UTF-8, or in UTF-16 if it begins with that one's mark, line ends as they are.

    Args:
        path: the file.
        unreadable: what to do if it can't be read, for the message.
        no_text: what to do if it is no such text.

    Raises:
        DataError: it can't be read, or is no such text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); {unreadable}") from None
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; {no_text}") from None
    if "\0" in text:
        raise DataError(f"{path} is not text, since it contains null bytes; {no_text}")
    return text


def read_json(path: Path, *, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is missing or no JSON; `what` says what it should have been.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin UTF-8 with a mark
        content = json.loads(text, object_pairs_hook=_once_each, parse_int=_to_int)
        json.dumps(content, ensure_ascii=False).encode()  # halves of characters, as \ud800, could not be written again
        return content
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; it should be {what}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers too long, brackets too deep
        raise DataError(f"{path} is not JSON ({error}); it should be {what}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); it should be {what}") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of whose values none may be dropped because another has the same name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
        raise ValueError(f"duplicate key {twice!r}")
    return content


def _to_int(digits: str) -> int:
    """A whole number of a size that files have, and that fits a float."""
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def write_json(path: Path, content: Any) -> None:
    """Write a dataclass, or what JSON knows, as JSON that a person can read; NaN and infinity are refused."""
    content = asdict(content) if is_dataclass(content) and not isinstance(content, type) else content
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def summarize(items: Sequence[str], most: int = 10) -> str:
    """The first items in a row, and how many more there are."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")
