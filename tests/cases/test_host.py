"""A library leaves its host alone, and the program says how threads wait before PyTorch is there."""

import os
import platform
import re
import subprocess
import sys

import pytest

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

THE_PROGRAM = """
import os, sys
from dinounet.cli.main import run
sys.argv = ["dinounet", "--version"]
try: run()
except SystemExit: pass
import torch
"""

A_LIBRARY = "import dinounet, dinounet.cli.main; dinounet.Predictor, dinounet.NetworkConfig, dinounet.train"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where nobody has said how threads shall wait but for what is given."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )


def spin_count(**environment: str) -> str:
    """What PyTorch's OpenMP library itself says that it has understood."""
    told = run_python(THE_PROGRAM, OMP_DISPLAY_ENV="verbose", **environment).stderr
    return re.findall(r"GOMP_SPINCOUNT = '(\d+|INFINITE)'", told, re.IGNORECASE)[0]


@pytest.mark.skipif(platform.system() != "Linux", reason="PyTorch has another OpenMP library there")
def test_threads_of_the_program_sleep_while_they_wait() -> None:
    assert spin_count() == "0"


@pytest.mark.skipif(platform.system() != "Linux", reason="PyTorch has another OpenMP library there")
def test_how_the_user_wants_threads_to_wait_stands() -> None:
    assert spin_count(GOMP_SPINCOUNT="1234") == "1234"


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_program_adds_nothing_to_what_the_user_has_said(variable: str) -> None:
    code = THE_PROGRAM.replace("import torch", f"print({{name: os.environ.get(name) for name in {VARIABLES}}})")
    told = run_python(code, **{variable: "1"}).stdout.splitlines()[-1]
    assert told == str({name: "1" if name == variable else None for name in VARIABLES})


def test_importing_the_library_sets_no_variable() -> None:
    code = f"import os; before = dict(os.environ); {A_LIBRARY}; assert dict(os.environ) == before, os.environ"
    run_python(code)
