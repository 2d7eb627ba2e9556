"""Prints the lowest allowed version of each dependency of `pyproject.toml`, as constraints for `make test-lowest`."""

import re
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    from pip._vendor import tomli as tomllib
else:
    import tomllib

TOOLS = ("dev", "docs", "nnunet")  # what tests are run by and compared with; nnU-Net has an environment of its own

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
features = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in TOOLS}
for requirement in sum(features.values(), project["dependencies"]):
    name, lowest = re.fullmatch(r"([\w.-]+)(?:\[[\w,.-]+\])?(?:>=([\d.]+))?(?:,.*)?", requirement).groups()
    if lowest:  # others are extras of our own
        print(f"{name}=={lowest}")
