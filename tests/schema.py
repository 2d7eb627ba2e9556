"""The JSON Schema of `model.json`, from the records that read and write it.

python tests/schema.py    writes src/dinounet/bundle/bundle.schema.json anew
"""

import json
from pathlib import Path

from dinounet.bundle import verify as bundle
from dinounet.schema.base import json_schema

FILE = Path(bundle.__file__).with_name("bundle.schema.json")

if __name__ == "__main__":
    FILE.write_text(json.dumps(json_schema(bundle.BundleRecord), indent=1) + "\n", encoding="utf-8")
