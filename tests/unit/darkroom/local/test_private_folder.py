"""The folder of local mode is for its user only."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.local.private_folder import private_folder
from infra.local.process import Child


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """Begin with the umask of most systems, and restore the one before."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the mode of a folder and of everything in it, by relative path."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("exists", [False, True])
async def test_files_and_folders_are_private(tmp_path: Path, exists: bool) -> None:
    """Files of this process and its children have 0600, folders 0700; a folder that exists is closed to others."""
    folder = tmp_path / "data" / "darkroom"
    if exists:
        folder.mkdir(parents=True)
    assert await private_folder(folder) == folder.resolve()
    (folder / "own").mkdir()
    (folder / "own" / "file").write_text("x")
    code = "import pathlib; pathlib.Path('child/deep').mkdir(parents=True); pathlib.Path('child/file').touch()"
    child = Child([sys.executable, "-c", code], log_file=folder / "logs" / "child.log", cwd=folder)
    assert await child.wait() == 0, (folder / "logs" / "child.log").read_text()
    assert modes(folder) == {
        ".": 0o700, "own": 0o700, "own/file": 0o600, "logs": 0o700, "logs/child.log": 0o600,
        "child": 0o700, "child/deep": 0o700, "child/file": 0o600,
    }  # fmt: skip
