"""Rotation of the logs of local mode."""

from __future__ import annotations

import asyncio
import shutil
import stat
import sys
from pathlib import Path

import pytest

from infra.local import log_rotation
from infra.local.log_rotation import keep_rotated, rotate
from infra.local.process import Child
from infra.local.service import LocalService, ServiceFailed


def test_a_log_is_rotated_by_size(tmp_path: Path) -> None:
    """Above the size a log becomes `.1`, and older ones move on; at most three files remain, with the log's mode."""
    log = tmp_path / "core.log"
    for text in ("first", "second", "third", "fourth"):
        log.write_text(text)
        log.chmod(0o600)
        assert not rotate(log, max_bytes=len(text))
        assert rotate(log, max_bytes=4)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "core.log": "",
        "core.log.1": "fourth",
        "core.log.2": "third",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_missing_log_is_no_error(tmp_path: Path) -> None:
    """A process that has not started yet has no log."""
    assert not rotate(tmp_path / "core.log", max_bytes=0)


def test_a_log_that_cannot_be_copied_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the log and its older files stay as they are."""

    def full(_log: Path, copy: Path) -> None:
        copy.write_text("in part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    log, older = tmp_path / "core.log", tmp_path / "core.log.1"
    log.write_text("new")
    older.write_text("old")
    with pytest.raises(OSError, match="No space"):
        rotate(log, max_bytes=1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"core.log": "new", "core.log.1": "old"}


async def test_a_running_process_continues_in_the_rotated_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that keeps its log open writes to its beginning after a rotation."""
    monkeypatch.setattr(log_rotation, "_CHECK_S", 0.01)
    log, go = tmp_path / "worker.log", tmp_path / "go"
    code = (
        "import pathlib, sys, time\nprint('a' * (11 << 20), flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\nprint('after', flush=True)"
    )
    child = Child([sys.executable, "-c", code, str(go)], log_file=log)
    rotating = asyncio.create_task(keep_rotated(lambda: [log, tmp_path / "missing.log"]))
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "worker.log.1").exists():
                await asyncio.sleep(0.01)
            go.touch()
            assert await child.wait() == 0
    finally:
        rotating.cancel()
        child.kill()
    assert log.read_text().endswith("after\n")
    assert len(log.read_bytes()) < 11 << 20


class Failing(LocalService):
    """A service whose log is rotated while it starts, and which then exits."""

    name = "failing"

    def _install(self) -> None: ...

    def _choose_ports(self) -> None: ...

    def _command(self) -> list[str]:
        return ["sh", "-c", f": > {self.log_file}; echo the reason; exit 3"]

    async def _answers(self) -> bool:
        return False


async def test_the_reason_of_a_failed_start_is_read_from_a_rotated_log(tmp_path: Path) -> None:
    """The end of the log is in the error, also if the log is shorter than at the start."""
    service = Failing(tmp_path)
    service.log_file.write_text("earlier\n" * 1000)
    with pytest.raises(ServiceFailed, match=r"exited with 3[^$]*the reason") as failure:
        await service.start()
    assert "earlier" not in str(failure.value)
