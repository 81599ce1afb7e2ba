"""The commands an operator types, as processes beside the running system."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom.local.demo import draw_turned
from tests.e2e.whole import Whole, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


def test_submit_waits_and_shows(whole: Whole, images_dir: Path) -> None:
    """`darkroom submit` sends, waits, shows a table, and exits 0 when every image was completed."""
    done = whole.command("submit", str(images_dir / "photos" / "owl.jpg"))
    assert done.returncode == 0, done.stderr
    assert "owl.jpg" in done.stdout
    assert "completed" in done.stdout
    assert "bird" in done.stdout


def test_submit_says_what_was_refused(whole: Whole, images_dir: Path, tmp_path: Path) -> None:
    """`darkroom submit` exits 1 and names the reason when an image was refused."""
    (tmp_path / "cut.jpg").write_bytes(draw_turned()[:4000])
    refused = whole.command("submit", str(tmp_path / "cut.jpg"))
    assert refused.returncode == 1
    assert "rejected" in refused.stdout
    assert "truncated-image" in refused.stdout
    at_the_door = whole.command("submit", str(images_dir / "formats" / "check.svg"))
    assert at_the_door.returncode == 1
    assert "unsupported-format" in at_the_door.stdout


def test_search_answers(whole: Whole, images_dir: Path) -> None:
    """`darkroom search` finds a submitted image by what is on it."""
    assert whole.command("submit", str(images_dir / "photos" / "owl.jpg")).returncode == 0
    found = whole.command("search", "bird")
    assert found.returncode == 0, found.stderr
    assert "by label" in found.stdout
    assert "nothing found" in whole.command("search", "zeppelin").stdout


def test_topics_are_as_the_table_says(whole: Whole) -> None:
    """`darkroom topics show` finds every topic as it should be, and `create` has nothing to do."""
    shown = whole.command("topics", "show")
    assert shown.returncode == 0, shown.stdout
    assert "darkroom.image.uploaded" in shown.stdout
    assert "All topics are there." in whole.command("topics", "create").stdout


def test_there_are_no_dead_letters(whole: Whole) -> None:
    """`darkroom dead-letters list` is empty: nothing the system was sent is a failure of ours."""
    listed = whole.command("dead-letters", "list")
    assert (listed.returncode, listed.stdout.strip()) == (0, "No dead letters."), listed.stdout + listed.stderr


def test_nothing_is_overdue(whole: Whole) -> None:
    """`darkroom reconcile --dry-run` finds nothing that should have ended and has not, and exits 0."""
    looked = whole.command("reconcile", "--dry-run")
    assert (looked.returncode, "Nothing is overdue" in looked.stdout) == (0, True), looked.stdout + looked.stderr


def test_models_are_listed(whole: Whole) -> None:
    """`darkroom models list` names every model, and says of CLIP that it is not there."""
    listed = whole.command("models", "list")
    assert listed.returncode == 0, listed.stderr
    lines = [line for line in listed.stdout.splitlines() if "embedder" in line]
    assert lines
    assert all("unavailable" in line for line in lines)


def test_an_agent_is_paused_and_goes_on_when_resumed(whole: Whole, images_dir: Path) -> None:
    """`darkroom agents pause` lets the agent's events wait, health says why; after `resume` the image is completed."""
    paused = whole.command("agents", "pause", "resizer", "--reason", "new presets")
    assert paused.returncode == 0, paused.stderr
    until(lambda: "new presets" in whole.client.health().parts["agents"].detail, "health to name the pause")
    assert not whole.client.health().ready
    listed = whole.command("agents", "list")
    assert "new presets (by operator" in listed.stdout
    job = whole.client.submit(images_dir / "photos" / "owl.jpg")
    until(lambda: whole.client.status(job.job_id).stages["sanitizer"].state == "done", "the sanitizer")
    assert whole.client.status(job.job_id).stages["resizer"].state == "pending"
    assert "consumes again" in whole.command("agents", "resume", "resizer").stdout
    assert whole.client.wait(job.job_id, timeout_s=180).status == "completed"
    until(lambda: whole.client.health().ready, "the system to be whole again")
