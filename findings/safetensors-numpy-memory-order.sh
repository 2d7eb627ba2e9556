#!/bin/sh
# safetensors: an array that does not lie in C order is written in the order of its memory, and read back with its values elsewhere.
#
# Seen with safetensors 0.8.0, numpy 2.2.6, Python 3.11, Linux; safetensors 0.7.0 writes the values where they were. The
# documentation of safetensors.numpy.save_file says nothing of order, and safetensors.torch refuses such tensors. Transposed
# arrays, columns of arrays, and what .numpy() gives of PyTorch's channels last maps are of this kind; nothing is told, and
# shapes and types are right. Known as safetensors/safetensors#825, open when this was written. numpy.ascontiguousarray helps.
#
# Output seen:
#   0.7.0: transposed [[0, 3], [1, 4], [2, 5]] is read as [[0, 3], [1, 4], [2, 5]]; a column [0, 3] as [0, 3]
#   0.8.0: transposed [[0, 3], [1, 4], [2, 5]] is read as [[0, 1], [2, 3], [4, 5]]; a column [0, 3] as [0, 1]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PYTHON'
import numpy
import safetensors
from safetensors.numpy import load_file, save_file

whole = numpy.arange(6).reshape(2, 3)
given = {"transposed": whole.T, "column": whole[:, 0]}
save_file(given, "arrays.safetensors")
found = load_file("arrays.safetensors")
version = safetensors.__version__
print(
    f"{version}: transposed {whole.T.tolist()} is read as {found['transposed'].tolist()}; "
    f"a column {whole[:, 0].tolist()} as {found['column'].tolist()}"
)
for name, array in given.items():
    assert found[name].shape == array.shape and (found[name] == array).all() == (version == "0.7.0"), "it has changed"
PYTHON
cd "$folder"
for version in 0.7.0 0.8.0; do
    python3 -m venv "$version"
    "$version/bin/pip" install --quiet --disable-pip-version-check safetensors==$version numpy==2.2.6
    "$version/bin/python" try.py
done
