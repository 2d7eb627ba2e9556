"""`dinounet VERB ...`: finds the verb, parses its command line, and turns errors into messages and exit codes.

Only the chosen verb's module is imported, and that imports neither torch nor timm before it runs: help is instant.
"""

from __future__ import annotations

import difflib
import keyword
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import dinounet
from dinounet.console import claim_process
from dinounet.errors import Interrupted, UserError
from dinounet.system import dist_info, keep_freed_memory, wait_asleep

VERBS = {
    "demo": "train, predict, evaluate and report on real brain images, in minutes",
    "plan": "describe a dataset and how it would be trained on",
    "train": "train on a dataset",
    "predict": "segment images with a trained run or a bundle",
    "evaluate": "compare predictions with the ground truth: Dice, HD95 and others",
    "compare": "compare models on the same cases",
    "report": "write results as one HTML page",
    "relabel": "clean masks that were smoothed, saved as JPEG or painted in colours",
    "export": "write runs as a bundle to share, as ONNX, or for nnU-Net",
    "import": "make a bundle of a model trained in nnU-Net or by the published code",
    "push": "upload a bundle to the Hugging Face Hub",
    "info": "list the backbones, or describe a run or a bundle",
}

DONE, OUR_FAILURE, USER_ERROR, STOPPED = 0, 1, 2, 130

SECONDS_TO_SPEAK = 3.0

USAGE = """usage: dinounet VERB ...

{verbs}

  dinounet VERB --help   shows a verb's options
  dinounet --version     shows the version
  --debug                with any verb, shows the traceback of an error
"""


def run() -> None:
    """The program: run the command line and leave with its exit code.

    What holds for a whole process, such as how threads wait and what becomes of freed memory, is set here: a library's
    host sets that for itself.
    """
    claim_process()
    wait_asleep()  # before anything loads PyTorch
    keep_freed_memory()
    try:
        code: Any = main()
    except SystemExit as end:  # help, or a flag that there is not
        code = end.code
    if code and dist_info().rank:  # the launcher ends all as soon as one has failed: the first one speaks before
        time.sleep(SECONDS_TO_SPEAK)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 the input or the command is wrong, 1 we failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items())), end="")
        return DONE if words else USER_ERROR
    if words[0] == "--version":
        print(f"dinounet {dinounet.__version__}")
        return DONE
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        return _fail(f"there is no verb {verb!r}; " + (f"did you mean {near[0]}?" if near else "see dinounet --help"))
    try:
        from dinounet.cli.flags import parse_call

        parse_call(function_of(verb), verb, words[1:])()
    except UserError as error:
        if debug:
            raise
        return _fail(str(error), STOPPED if isinstance(error, Interrupted) else USER_ERROR)
    except KeyboardInterrupt:
        return _fail("stopped", STOPPED)
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if debug:
            raise
        where = error.filename or "the output"
        return _fail(f"{where}: {error.strerror or error}; check the path, its permissions and the space that is left")
    except Exception as error:
        if debug:
            raise
        return _fail(
            f"internal error ({type(error).__name__}: {error}); run it again with --debug and report it",
            OUR_FAILURE,
        )
    return DONE


def function_of(verb: str) -> Any:
    """The verb's Python function, of the same name, but for a word that Python keeps for itself: `import_`."""
    return getattr(dinounet, f"{verb}_" if keyword.iskeyword(verb) else verb)


def _fail(message: str, code: int = USER_ERROR) -> int:
    if not dist_info().rank:  # of several processes one speaks for all
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # a file's name may hold anything
        print(f"dinounet: {line}", file=sys.stderr)
    return code
