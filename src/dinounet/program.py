"""What a program may set for its whole process, and a library must leave to its host.

Warning filters, loggers and the file descriptor of standard error belong to everybody in a process. Somebody else's
script, notebook or server, perhaps of several threads, imports dinounet and finds them afterwards as they were before.
The program, `dinounet ...`, and the processes that dinounet starts are nobody else's.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_is_ours = False


def claim_process() -> None:
    """From here on this process is dinounet's own, and other packages' warnings are not shown in it.

    A user can do nothing about them; who wants them says so to Python, by -W or PYTHONWARNINGS.
    """
    global _is_ours
    _is_ours = True
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # prints what it then also raises


@contextmanager
def without_other_loggers() -> Iterator[None]:
    """Within the block nobody's logger tells anything less than an error, in a process of our own."""
    before = logging.root.manager.disable
    if _is_ours:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        if _is_ours:
            logging.disable(before)


_redirecting = threading.Lock()


@contextmanager
def without_standard_error() -> Iterator[None]:
    """Within the block, in a process of our own, nothing is printed there: C libraries print beside raising an error.

    As ITK's MetaIO does, of a damaged MHA. Elsewhere the host's own standard error would be away meanwhile.
    """
    if not _is_ours:
        yield
        return
    with _redirecting:  # two threads would put back each other's
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def quieten_lightning() -> None:
    """Lightning Fabric tells errors alone, in a process of our own; importing it undoes that."""
    if _is_ours:
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module="lightning_fabric")


def quieten_itk(sitk: Any) -> None:
    """ITK prints no warnings any more, in a process of our own.

    Args:
        sitk: the module.
    """
    if _is_ours:
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
