"""The `darkroom` commands against a running system."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest

from darkroom.local.demo import draw_turned
from tests.e2e.system import RunningSystem, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


def test_submit_waits_and_prints_results(system: RunningSystem, images_dir: Path) -> None:
    """`darkroom submit` uploads, waits, prints a table, and exits 0 if every image completed."""
    done = system.command("submit", str(images_dir / "photos" / "owl.jpg"))
    assert done.returncode == 0, done.stderr
    assert "owl.jpg" in done.stdout
    assert "completed" in done.stdout
    assert "bird" in done.stdout


def test_submit_reports_rejected_images(system: RunningSystem, images_dir: Path, tmp_path: Path) -> None:
    """`darkroom submit` exits 1 and names the code if an image is rejected."""
    (tmp_path / "cut.jpg").write_bytes(draw_turned()[:4000])
    rejected = system.command("submit", str(tmp_path / "cut.jpg"))
    assert rejected.returncode == 1
    assert "rejected" in rejected.stdout
    assert "truncated-image" in rejected.stdout
    on_upload = system.command("submit", str(images_dir / "formats" / "check.svg"))
    assert on_upload.returncode == 1
    assert "unsupported-format" in on_upload.stdout


def test_search_answers(system: RunningSystem, images_dir: Path) -> None:
    """`darkroom search` finds a submitted image by a detected label."""
    assert system.command("submit", str(images_dir / "photos" / "owl.jpg")).returncode == 0
    found = system.command("search", "bird")
    assert found.returncode == 0, found.stderr
    assert "by label" in found.stdout
    assert "nothing found" in system.command("search", "zeppelin").stdout


def test_topics_match_the_table(system: RunningSystem) -> None:
    """`darkroom topics show` finds every topic as declared, and `create` has nothing to do."""
    shown = system.command("topics", "show")
    assert shown.returncode == 0, shown.stdout
    assert "darkroom.image.uploaded" in shown.stdout
    assert "All topics exist." in system.command("topics", "create").stdout


def test_only_its_user_can_read_the_folder(system: RunningSystem) -> None:
    """Events, objects, keys and logs of local mode have no permissions for others."""
    assert list(system.folder.rglob("logs/core.log"))
    own = system.folder / "up.log"  # of this test, the output of `darkroom up`
    for path in {system.folder, *system.folder.rglob("*")} - {own}:
        with suppress(FileNotFoundError):  # removed meanwhile
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_there_are_no_dead_letters(system: RunningSystem) -> None:
    """`darkroom dead-letters list` is empty: no event of these tests failed."""
    listed = system.command("dead-letters", "list")
    assert (listed.returncode, listed.stdout.strip()) == (0, "No dead letters."), listed.stdout + listed.stderr


def test_nothing_is_overdue(system: RunningSystem) -> None:
    """`darkroom reconcile --dry-run` finds no overdue image, and exits 0."""
    done = system.command("reconcile", "--dry-run")
    assert (done.returncode, "Nothing is overdue" in done.stdout) == (0, True), done.stdout + done.stderr


def test_models_are_listed(system: RunningSystem) -> None:
    """`darkroom models list` names every model, and reports CLIP as unavailable."""
    listed = system.command("models", "list")
    assert listed.returncode == 0, listed.stderr
    lines = [line for line in listed.stdout.splitlines() if "embedder" in line]
    assert lines
    assert all("unavailable" in line for line in lines)


def test_an_agent_is_paused_and_resumed(system: RunningSystem, images_dir: Path) -> None:
    """`darkroom agents pause` stops consumption and health names the reason; after `resume` the image completes."""
    paused = system.command("agents", "pause", "resizer", "--reason", "new presets")
    assert paused.returncode == 0, paused.stderr
    until(lambda: "new presets" in system.client.health().parts["agents"].detail, "health naming the pause")
    assert not system.client.health().ready
    listed = system.command("agents", "list")
    assert "new presets (by operator" in listed.stdout
    job = system.client.submit(images_dir / "photos" / "owl.jpg")
    until(lambda: system.client.status(job.job_id).stages["sanitizer"].state == "done", "the sanitizer")
    assert system.client.status(job.job_id).stages["resizer"].state == "pending"
    assert "consumes again" in system.command("agents", "resume", "resizer").stdout
    assert system.client.wait(job.job_id, timeout_s=180).status == "completed"
    until(lambda: system.client.health().ready, "the system being ready again")
