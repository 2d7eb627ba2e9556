"""What is freed stays with the process, on glibc; elsewhere nothing happens, and nothing fails."""

import platform
import subprocess
import sys

import pytest

from dinounet import system as allocator

FREE_100_MB = """
import os, psutil
{first}
def resident(): return psutil.Process().memory_info().rss
before = resident()
piece = bytearray(os.urandom(1)) * 100_000_000
del piece
print((resident() - before) // 1_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize(
    ("first", "kept"),
    [
        ("", False),
        ("from dinounet.system import keep_freed_memory; keep_freed_memory()", True),
        ("import dinounet; dinounet.NetworkConfig", False),  # a library leaves that to its host
        ("from dinounet.system import *; keep_freed_memory(); return_freed_memory()", False),
        ("from dinounet.system import *; return_freed_memory(); keep_freed_memory()", False),
    ],
)
def test_freed_memory_is_kept(first: str, kept: bool) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FREE_100_MB.format(first=first)], capture_output=True, check=True, text=True
    )
    assert (int(told.stdout) > 75) == kept


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def mallopt(self, *_: int) -> int:
            raise AssertionError("called")

    monkeypatch.setattr(allocator, "_returned", False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Musl())  # no gnu_get_libc_version
    allocator.keep_freed_memory()

    def refuse(_: None) -> None:
        raise TypeError("Windows")

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    allocator.keep_freed_memory()
