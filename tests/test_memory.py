"""Freed memory stays with the process, so that the next update does not fault it in again."""

import ctypes
import platform
import subprocess
import sys

import pytest

from rayssl.memory import keep_freed_memory

PAGES = """
import resource, sys
from rayssl.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    blocks = [bytearray(6_000_000) for _ in range(4)]
    del blocks
work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")


def faults_of_ten_rounds(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PAGES, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@GLIBC
def test_kept_memory_is_not_faulted_in_again() -> None:
    assert faults_of_ten_rounds("keep") < 100
    assert faults_of_ten_rounds("as it is") > 1_000  # what would be paid otherwise


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_glibc(name: str) -> None:
        raise OSError("libc.so.6: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_glibc)
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
