"""Stopping and restarting the system during work."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from schemas.values import ImageState
from streams.topics import AGENTS
from tests.e2e.system import RunningSystem, launch, started, stop, until

pytestmark = pytest.mark.timeout(900)


def test_sigterm_ends_all_processes_and_loses_nothing(
    tmp_path: Path, models_dir: Path, models_cache: Path, images_dir: Path
) -> None:
    """SIGTERM during work drains every agent and ends every process; after a restart all images complete."""
    sources = sorted((images_dir / "clip_golden").glob("*.jpg"))
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR loads slowly and adds nothing here
    with started(tmp_path, models_dir, models_cache, **quick) as system:
        jobs = [system.client.submit(source).job_id for source in sources]
        before = system.processes()
        assert _names(before) >= {"up", "core", "router", "sanitizer", "resizer", "ocr", "detector", "embedder"}
        assert stop(system.process) == 0
    assert not _left(tmp_path)
    assert not [process for process in before if _runs(process)]
    assert _drained(tmp_path / "logs") == set(AGENTS), "an agent did not drain before Kafka stopped"
    with started(tmp_path, models_dir, models_cache, **quick) as system:
        ends = [system.client.wait(job_id, timeout_s=240).status for job_id in jobs]
        assert ends == [ImageState.COMPLETED] * len(jobs)


def test_sigterm_during_startup_ends_all_processes(tmp_path: Path, models_dir: Path, models_cache: Path) -> None:
    """SIGTERM during startup ends the processes started so far, with exit code 0."""
    launched = launch(tmp_path, models_dir, models_cache)
    try:
        until(lambda: "Creating topics" in launched.log_file.read_text(), "Kafka and MinIO running")
    finally:
        code = stop(launched.process)
    assert code == 0, launched.log_file.read_text()
    assert not _left(tmp_path)


def _left(folder: Path) -> list[psutil.Process]:
    """Return the processes that refer to a folder."""
    return [process for process in psutil.process_iter() if _belongs(process, folder)]


def _drained(logs: Path) -> set[str]:
    """Return the agents that logged a complete drain."""
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
    """Return whether a process still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _belongs(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process refers to a folder in its command, directory or environment."""
    try:
        return str(folder) in " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
    except psutil.Error:
        return False


def test_up_reports_a_port_in_use(system: RunningSystem, tmp_path: Path) -> None:
    """`darkroom up` on a port in use exits with 2 and names the port."""
    port = system.url.rsplit(":", 1)[-1]
    refused = system.command("up", "--port", port, "--folder", str(tmp_path))
    assert refused.returncode == 2
    assert f"Port {port}" in refused.stderr
