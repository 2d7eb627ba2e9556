"""The JSON Schema of `model.json`, by pydantic from the dataclasses that read and write it.

python tests/schema.py    writes src/dinounet/bundle/bundle.schema.json anew
"""

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from dinounet.backbones import weights
from dinounet.bundle import verify as bundle
from dinounet.inference import postprocessing
from dinounet.planning import data_plan as plan
from dinounet.planning import fingerprint
from dinounet.schema import labels
from dinounet.schema import network as config

FILE = Path(bundle.__file__).with_name("bundle.schema.json")


def make_schema() -> dict[str, Any]:
    """What a whole and known `model.json` fulfils: no unknown keys, docstrings as descriptions."""
    for module in (fingerprint, labels, plan, bundle, postprocessing, config, weights):
        for kind in vars(module).values():
            if isinstance(kind, type) and is_dataclass(kind):
                kind.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    schema = TypeAdapter(bundle.BundleRecord).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    FILE.write_text(json.dumps(make_schema(), indent=1) + "\n", encoding="utf-8")
