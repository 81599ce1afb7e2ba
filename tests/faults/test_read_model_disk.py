"""The read model in process on a full disk: writes are refused, reads go on, and nothing acknowledged is lost.

The disk is a file system in a file (ext4, by root) or a tmpfs (also by other users), mounted in a namespace of the
process under test, so that it is gone with it. Where nothing may be mounted, files may not grow instead.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISK_MB = 400
FULL = re.compile(r"refused: the disk of the read model (\S+) is full: \d+ MB are free, \d+ MB are needed")
EXT4 = "truncate -s {size}m {image} && mkfs.ext4 -q -F -m 0 {image} && mount -o loop {image} {folder}"
TMPFS = "mount -t tmpfs -o size={size}m tmpfs {folder}"


def test_a_read_model_on_a_full_disk(tmp_path: Path) -> None:
    """Writes raise DependencyUnavailable with folder and space, and the process survives; with space it goes on."""
    done = _on_small_disk(tmp_path)
    if done is None:
        pytest.skip("nothing can be mounted here; the test with a limit on the size of files covers what it can")
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr[-3000:]}"
    steps = [line for line in done.stdout.splitlines() if line.startswith(("refused", "read", "written", "whole"))]
    assert [step.split(":")[0] for step in steps] == [
        "refused", "read", "written", "refused", "read", "refused", "written", "whole",
    ]  # fmt: skip
    for sentence in (step for step in steps if step.startswith("refused")):
        found = FULL.match(sentence)
        assert found, sentence
        assert found[1].startswith(str(tmp_path))


def test_a_read_model_whose_files_cannot_grow(tmp_path: Path) -> None:
    """A write that the engine cannot finish raises DependencyUnavailable; reads and later writes succeed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = _run([*_SCRIPT, str(folder), "limit"])
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr[-3000:]}"
    assert done.stdout.splitlines()[-1] == "whole"


_SCRIPT = (sys.executable, "-m", "tests.faults.read_model_on_a_small_disk")


def _on_small_disk(tmp_path: Path) -> subprocess.CompletedProcess[str] | None:
    """Run the script on the first kind of disk that can be mounted; None if there is none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    for mount in (EXT4, TMPFS):
        command = mount.format(
            size=DISK_MB, image=shlex.quote(str(tmp_path / "image")), folder=shlex.quote(str(folder))
        )
        tried = _run(["unshare", *user, "--mount", "sh", "-c", command])
        if tried.returncode == 0:
            whole = f"{command} && exec {shlex.join([*_SCRIPT, str(folder)])}"
            return _run(["unshare", *user, "--mount", "sh", "-c", whole])
    return None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
