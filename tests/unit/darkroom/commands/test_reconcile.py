"""`darkroom reconcile` against a served admin API, and the reconciler process's passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from agents.maintenance.janitor import Janitor, JanitorSettings
from agents.maintenance.reconciler import Reconciler, ReconcilerSettings
from agents.stages.indexer import Tools, index
from darkroom.commands.reconcile import reconcile
from darkroom.processes.reconciler import RECONCILER, Maintenance, ReconcilingEnvironment
from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from schemas.events.facts import DeletionRequested
from schemas.http.reconciliation import OldestUnfinished, OverdueItem, ReconcileReport, Standing
from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.reprocess_jobs import ReprocessRunner
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from streams.telemetry.health_board import Condition, HealthBoard
from streams.testing.memory_log import MemoryLog
from tests.support.facts import Facts
from tests.support.gateway_components import FaultyFiles, Sink, StubReadiness, settings

IMAGE = new_image_id()
QUIET = ReconcileReport(dry_run=True, at="2026-01-01T00:00:00Z", took_s=0.1, complete=True, images={}, unfinished={})


def overdue(*, dry_run: bool) -> ReconcileReport:
    """Return a report with a value in every field."""
    item = OverdueItem(
        image_id=IMAGE, generation=1, stage="ocr", reason="stage-missing", standing=Standing.OVERDUE, age_s=7384,
        tries=1, sent=True,
    )  # fmt: skip
    return QUIET.model_copy(
        update={
            "dry_run": dry_run,
            "images": {"completed": 5, "processing": 2},
            "unfinished": {"ocr": {Standing.OVERDUE: 1, Standing.WAITING: 1}},
            "oldest": OldestUnfinished(image_id=IMAGE, stage="ocr", age_s=7400),
            "overdue": (item,),
            "overdue_count": 12,
            "missing_objects": ("images/aa/x/1/large.webp",),
            "missing_count": 1,
            "swept": {"late": 0, "orphans": 3},
        }
    )


@dataclass
class FakeReconciler:
    """Counts its passes and returns the report set by a test."""

    found: ReconcileReport = QUIET
    unavailable: bool = False
    dry_runs: list[bool] = field(default_factory=list)

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        self.dry_runs.append(dry_run)
        if self.unavailable:
            raise DependencyUnavailable("no Kafka at 10.0.0.7:9092")
        return self.found


@dataclass
class Served:
    """A served query gateway and the command that calls it."""

    url: str
    reconciler: FakeReconciler

    async def command(self, *arguments: str) -> Result:
        """Run `darkroom reconcile`."""
        app = typer.Typer()
        app.command()(reconcile)
        command_line = [*arguments, "--url", self.url]
        return await asyncio.to_thread(CliRunner(env={"COLUMNS": "250"}).invoke, app, command_line)


@pytest.fixture
async def read_model(tmp_path: Path) -> AsyncIterator[ReadModel]:
    """Yield an empty read model."""
    async with open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as model:
        yield model


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """Yield an object store that can be made unavailable."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as files:
        yield FaultyFiles(files)


@pytest.fixture
async def served(read_model: ReadModel, store: FaultyFiles) -> AsyncIterator[Served]:
    """Yield a served gateway whose reconciler returns the test's report."""
    fake = FakeReconciler()
    app = query_app(
        settings(),
        QueryComponents(
            files=store,
            events=Sink(),
            read_model=read_model,
            encoder=None,
            readiness=StubReadiness(),
            reconciling=fake,
        ),
    )
    async with serving(app, "127.0.0.1", 0) as port:
        yield Served(f"http://127.0.0.1:{port}", fake)


async def test_nothing_overdue_exits_0(served: Served) -> None:
    """With nothing overdue the command reports so and exits 0."""
    result = await served.command("--dry-run")
    assert result.exit_code == 0, result.output
    assert "Nothing is overdue" in result.output
    assert served.reconciler.dry_runs == [True]


async def test_overdue_images_exit_3(served: Served) -> None:
    """The output has counts, the oldest image, each overdue one with its action, and missing objects; it exits 3."""
    served.reconciler.found = overdue(dry_run=False)
    result = await served.command()
    assert result.exit_code == 3, result.output
    assert served.reconciler.dry_runs == [False]
    assert "5 completed, 2 processing" in result.output
    assert f"Oldest unfinished: {IMAGE}, 2 h 3 min, waits for ocr" in result.output
    (line,) = [line for line in result.output.splitlines() if f"{IMAGE}.1" in line]
    assert line.split() == [f"{IMAGE}.1", "ocr", "stage-missing", "2", "h", "3", "min", "overdue", "1", "sent", "again"]
    assert "and 11 more" in result.output
    assert "images/aa/x/1/large.webp" in result.output
    assert "The janitor found: 3 orphans" in result.output


async def test_a_dry_run_is_worded_as_one(served: Served) -> None:
    """A dry run's output differs from a real one's in every verb."""
    served.reconciler.found = overdue(dry_run=True)
    result = await served.command("--dry-run")
    assert "would be sent again" in result.output
    assert "The janitor would find: 3 orphans" in result.output


async def test_an_unavailable_dependency_is_reported(served: Served) -> None:
    """When a dependency of the reconciler is unavailable the command fails with a sentence without addresses."""
    served.reconciler.unavailable = True
    result = await served.command()
    assert result.exit_code == 1
    assert "10.0.0.7" not in result.output
    nobody = Served("http://127.0.0.1:1", FakeReconciler())
    result = await nobody.command()
    assert result.exit_code == 1


class NoBacklog:
    """No agent has a backlog."""

    async def oldest(self, _agent: str) -> None:
        return None


@pytest.fixture
def maintenance(read_model: ReadModel, store: FaultyFiles) -> Maintenance:
    """Return a maintenance process with short intervals and without Kafka."""
    files: FileStore = store
    log = MemoryLog()
    settings = ReconcilerSettings(overdue_s=0.001)
    health = HealthBoard()
    health.say(RECONCILER, Condition.OK, "no pass yet")
    return Maintenance(
        Reconciler(settings, files=files, read_model=read_model, deliverer=log, progress=NoBacklog()),
        Janitor(files, read_model, JanitorSettings(horizon_s=0)),
        ReprocessRunner(files, read_model, log),
        interval_s=0.01,
        health=health,
    )


async def until_health(maintenance: Maintenance, words: str) -> None:
    """Wait until the reconciler's health detail contains these words."""
    async with asyncio.timeout(60):
        while words not in (await maintenance.part())[1]:
            await asyncio.sleep(0.01)


async def test_passes_continue_through_an_outage(maintenance: Maintenance, store: FaultyFiles) -> None:
    """Health shows the last pass and its failure; the next pass is done."""
    async with maintenance.running():
        await until_health(maintenance, "0 unfinished, 0 overdue")
        store.unavailable = True
        await until_health(maintenance, "a dependency is unavailable")
        assert await maintenance.part() == (True, maintenance.health.snapshot()[RECONCILER]["detail"])
        store.unavailable = False
        await until_health(maintenance, "0 unfinished, 0 overdue")


async def test_a_bug_in_a_pass_does_not_end_the_process(
    maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that fails because of a bug is reported, and the next one is done."""

    async def fails(**_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Reconciler, "look", fails)
        async with maintenance.running():
            await until_health(maintenance, "a later pass failed")
            broken.undo()
            await until_health(maintenance, "0 unfinished")


async def test_the_report_has_the_janitors_counts(
    maintenance: Maintenance, read_model: ReadModel, store: FaultyFiles
) -> None:
    """A full pass reports what the janitor removed; a dry run reports the same and removes nothing."""
    image_id = new_image_id()
    tools = Tools(read_model, store)
    await index(Facts(image_id).sanitized(), tools)
    await index(DeletionRequested(image_id=image_id, owner="anna", generation=2), tools)
    dry = await maintenance.reconcile(dry_run=True)
    assert (dry.dry_run, dry.swept["finished"]) == (True, 1)
    done = await maintenance.reconcile(dry_run=False)
    assert (done.dry_run, done.swept["finished"]) == (False, 1)
    again = await maintenance.reconcile(dry_run=False)
    assert again.swept["finished"] == 0
    assert await read_model.get(image_id) is None


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconciler and janitor have their own variables; an invalid one is refused."""
    monkeypatch.setenv("DARKROOM_RECONCILER__OVERDUE_S", "7")
    monkeypatch.setenv("DARKROOM_JANITOR__HORIZON_S", "8")
    environment = ReconcilingEnvironment()
    assert (environment.reconciler.overdue_s, environment.janitor.horizon_s) == (7, 8)
    monkeypatch.setenv("DARKROOM_RECONCILER__TRIES", "0")
    with pytest.raises(ValidationError, match="tries"):
        ReconcilingEnvironment()
