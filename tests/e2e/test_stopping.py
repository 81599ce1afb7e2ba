"""Stopping the whole system in the middle of its work, and going on from there."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from schemas.values import ImageState
from streams.topics import AGENTS
from tests.e2e.whole import Whole, launch, started, stop, until

pytestmark = pytest.mark.timeout(900)


def test_sigterm_leaves_nothing_running_and_nothing_is_lost(
    tmp_path: Path, models_dir: Path, models_cache: Path, images_dir: Path
) -> None:
    """SIGTERM in the middle of work drains every agent and ends every process; started again, all is completed."""
    sources = sorted((images_dir / "clip_golden").glob("*.jpg"))
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR takes long to load, and adds nothing here
    with started(tmp_path, models_dir, models_cache, **quick) as system:
        jobs = [system.client.submit(source).job_id for source in sources]
        before = system.processes()
        assert _names(before) >= {"up", "core", "router", "sanitizer", "resizer", "ocr", "detector", "embedder"}
        assert stop(system.process) == 0
    assert not _left(tmp_path)
    assert not [process for process in before if _runs(process)]
    assert _drained(tmp_path / "logs") == set(AGENTS), "who did not finish its work before Kafka went"
    with started(tmp_path, models_dir, models_cache, **quick) as system:
        ends = [system.client.wait(job_id, timeout_s=240).status for job_id in jobs]
        assert ends == [ImageState.COMPLETED] * len(jobs)


def test_sigterm_while_it_starts_leaves_nothing_running(tmp_path: Path, models_dir: Path, models_cache: Path) -> None:
    """SIGTERM before the system is up ends what was started so far, and is no failure."""
    launched = launch(tmp_path, models_dir, models_cache)
    try:
        until(lambda: "Creating topics" in launched.said.read_text(), "Kafka and MinIO being up")
    finally:
        code = stop(launched.process)
    assert code == 0, launched.said.read_text()
    assert not _left(tmp_path)


def _left(folder: Path) -> list[psutil.Process]:
    """Return the processes that have to do with a folder."""
    return [process for process in psutil.process_iter() if _belongs(process, folder)]


def _drained(logs: Path) -> set[str]:
    """Return the agents whose log says that they finished what was in flight."""
    lines = [
        json.loads(line) for log in logs.glob("*.log") for line in log.read_text().splitlines() if "drained" in line
    ]
    return {str(line["stage"]) for line in lines if line["drained"] is True}


def _names(processes: list[psutil.Process]) -> set[str]:
    lines = [process.cmdline() for process in processes]
    return {
        line[line.index("darkroom") + 1 :][-1] if "up" not in line else "up" for line in lines if "darkroom" in line
    }


def _runs(process: psutil.Process) -> bool:
    """Say whether a process still runs; one that nobody has asked for its exit code has ended all the same."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _belongs(process: psutil.Process, folder: Path) -> bool:
    """Say whether a process has to do with a folder: by its command, its directory or its environment."""
    try:
        return str(folder) in " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
    except psutil.Error:
        return False


def test_a_taken_port_is_said(whole: Whole, tmp_path: Path) -> None:
    """A second system on a port that is taken does not start, and says how to choose another."""
    port = whole.url.rsplit(":", 1)[-1]
    refused = whole.command("up", "--port", port, "--folder", str(tmp_path))
    assert refused.returncode == 2
    assert f"Port {port}" in refused.stderr
