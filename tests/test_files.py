"""Files that are whole, and folders that one process has at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayssl.files import hold

HOLDER = """
import sys
from pathlib import Path
from rayssl.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_folder_is_one_process_own_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        refused = pytest.raises(BlockingIOError, match="Another process is at work in .*Wait for")
        with refused, hold(tmp_path):
            pass
        other.kill()
    for _ in range(2):
        with hold(tmp_path):
            assert list(tmp_path.iterdir()) == []  # no file of a lock is left over
