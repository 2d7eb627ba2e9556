#!/bin/sh
# PyTorch: an OSError that is raised in a DataLoader's worker reaches the main process without its errno.
#
# Seen with torch 2.14.1, numpy 2.4.6, Python 3.11, Linux.
#
# The worker sends the exception's class and the text of its traceback, and the main process makes a new exception,
# OSError(text). Such an OSError has no errno, no strerror and no filename, and is never of the subclass that Python
# chooses by the errno when it is made of one. With num_workers=0 the very same dataset raises the error itself. So
#   except OSError as error:
#       if error.errno == errno.ENOSPC: ...
# and retrying what passes (ESTALE, ETIMEDOUT of a network file system) work without workers and do nothing with them.
# Whoever wants to tell a full disk from a file system that is away has to do so in the worker.
#
# Output seen:
#   0 workers: OSError, errno 116 (ESTALE), filename 'scan.nii.gz'
#   1 worker:  OSError, errno None, filename None, first line: Caught OSError in DataLoader worker process 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import errno
import os
import sys

from torch.utils.data import DataLoader, Dataset


class OnANetwork(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "scan.nii.gz")


def error_with(workers):
    try:
        next(iter(DataLoader(OnANetwork(), num_workers=workers)))
    except OSError as error:
        return error


if __name__ == "__main__":
    own, sent = error_with(0), error_with(1)
    print(f"0 workers: {type(own).__name__}, errno {own.errno} (ESTALE), filename {own.filename!r}")
    print(f"1 worker:  {type(sent).__name__}, errno {sent.errno}, filename {sent.filename!r}, first line:", str(sent).splitlines()[0])
    as_seen = own.errno == errno.ESTALE and type(sent) is OSError and sent.errno is None and sent.filename is None
    sys.exit(not as_seen)
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
