"""`darkroom reconcile` against a served admin API, and what the process of the reconciler does over and over."""

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
    """Return a report with something of everything."""
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
class Looks:
    """Looks when it is asked, and finds what it is told."""

    found: ReconcileReport = QUIET
    unavailable: bool = False
    dry_runs: list[bool] = field(default_factory=list)

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        self.dry_runs.append(dry_run)
        if self.unavailable:
            raise DependencyUnavailable("no Kafka at 10.0.0.7:9092")
        return self.found


@dataclass
class Office:
    """A query gateway, served, and the command that calls it."""

    url: str
    looks: Looks

    async def command(self, *arguments: str) -> Result:
        """Run `darkroom reconcile`."""
        app = typer.Typer()
        app.command()(reconcile)
        asked = [*arguments, "--url", self.url]
        return await asyncio.to_thread(CliRunner(env={"COLUMNS": "250"}).invoke, app, asked)


@pytest.fixture
async def read_model(tmp_path: Path) -> AsyncIterator[ReadModel]:
    """Return an empty read model."""
    async with open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as model:
        yield model


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """Return an empty object store that may be made to be away."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as files:
        yield FaultyFiles(files)


@pytest.fixture
async def office(read_model: ReadModel, store: FaultyFiles) -> AsyncIterator[Office]:
    """Return a served gateway whose reconciler finds what a test says."""
    looks = Looks()
    app = query_app(
        settings(),
        QueryComponents(
            files=store,
            events=Sink(),
            read_model=read_model,
            encoder=None,
            readiness=StubReadiness(),
            reconciling=looks,
        ),
    )  # type: ignore[arg-type]
    async with serving(app, "127.0.0.1", 0) as port:
        yield Office(f"http://127.0.0.1:{port}", looks)


async def test_nothing_overdue_is_a_zero(office: Office) -> None:
    """With nothing overdue the command says so and exits 0."""
    result = await office.command("--dry-run")
    assert result.exit_code == 0, result.output
    assert "Nothing is overdue" in result.output
    assert office.looks.dry_runs == [True]


async def test_what_is_overdue_is_shown_and_is_a_three(office: Office) -> None:
    """Counts, the oldest image, each overdue one with what was done, and missing objects are shown; it exits 3."""
    office.looks.found = overdue(dry_run=False)
    result = await office.command()
    assert result.exit_code == 3, result.output
    assert office.looks.dry_runs == [False]
    assert "5 completed, 2 processing" in result.output
    assert f"Oldest unfinished: {IMAGE}, 2 h 3 min, waits for ocr" in result.output
    (line,) = [line for line in result.output.splitlines() if f"{IMAGE}.1" in line]
    assert line.split() == [f"{IMAGE}.1", "ocr", "stage-missing", "2", "h", "3", "min", "overdue", "1", "sent", "again"]
    assert "and 11 more" in result.output
    assert "images/aa/x/1/large.webp" in result.output
    assert "The janitor found: 3 orphans" in result.output


async def test_a_dry_run_says_what_would_be(office: Office) -> None:
    """A dry run is told from a real one in every word."""
    office.looks.found = overdue(dry_run=True)
    result = await office.command("--dry-run")
    assert "would be sent again" in result.output
    assert "The janitor would find: 3 orphans" in result.output


async def test_a_part_that_is_away_is_a_sentence(office: Office) -> None:
    """When something the reconciler needs is away the command says so, without addresses, and fails."""
    office.looks.unavailable = True
    result = await office.command()
    assert result.exit_code == 1
    assert "10.0.0.7" not in result.output
    nobody = Office("http://127.0.0.1:1", Looks())
    result = await nobody.command()
    assert result.exit_code == 1


class Nothing:
    """Nobody has anything to do."""

    async def oldest(self, _agent: str) -> None:
        return None


@pytest.fixture
def upkeep(read_model: ReadModel, store: FaultyFiles) -> Maintenance:
    """Return an upkeep that is never at rest, and asks no Kafka."""
    files: FileStore = store  # type: ignore[assignment]
    log = MemoryLog()
    looking = ReconcilerSettings(overdue_s=0.001)
    health = HealthBoard()
    health.say(RECONCILER, Condition.OK, "no pass yet")
    return Maintenance(
        Reconciler(looking, files=files, read_model=read_model, deliverer=log, progress=Nothing()),
        Janitor(files, read_model, JanitorSettings(horizon_s=0)),
        ReprocessRunner(files, read_model, log),
        interval_s=0.01,
        health=health,
    )


async def until_said(upkeep: Maintenance, words: str) -> None:
    """Wait until the health of the reconciler says these words."""
    async with asyncio.timeout(60):
        while words not in (await upkeep.part())[1]:
            await asyncio.sleep(0.01)


async def test_passes_go_on_through_an_outage(upkeep: Maintenance, store: FaultyFiles) -> None:
    """Health says when the last pass was; one that cannot be done is said too, and the next one is."""
    async with upkeep.going_on():
        await until_said(upkeep, "0 unfinished, 0 overdue")
        store.unavailable = True
        await until_said(upkeep, "something it needs is away")
        assert await upkeep.part() == (True, upkeep.health.snapshot()[RECONCILER]["detail"])
        store.unavailable = False
        await until_said(upkeep, "0 unfinished, 0 overdue")


async def test_a_bug_in_a_pass_ends_no_process(upkeep: Maintenance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that fails for a reason of ours is said, and the next one is done all the same."""

    async def fails(**_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Reconciler, "look", fails)
        async with upkeep.going_on():
            await until_said(upkeep, "one failed since")
            broken.undo()
            await until_said(upkeep, "0 unfinished")


async def test_the_janitor_is_asked_too(upkeep: Maintenance, read_model: ReadModel, store: FaultyFiles) -> None:
    """A look at everything tells what the janitor did; in a dry run what it would do, which is then still there."""
    image_id = new_image_id()
    tools = Tools(read_model, store)  # type: ignore[arg-type]
    await index(Facts(image_id).sanitized(), tools)
    await index(DeletionRequested(image_id=image_id, owner="anna", generation=2), tools)
    dry = await upkeep.reconcile(dry_run=True)
    assert (dry.dry_run, dry.swept["finished"]) == (True, 1)
    done = await upkeep.reconcile(dry_run=False)
    assert (done.dry_run, done.swept["finished"]) == (False, 1)
    again = await upkeep.reconcile(dry_run=False)
    assert again.swept["finished"] == 0
    assert await read_model.get(image_id) is None


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconciler and janitor are set by variables of their own; a wrong one is refused."""
    monkeypatch.setenv("DARKROOM_RECONCILER__OVERDUE_S", "7")
    monkeypatch.setenv("DARKROOM_JANITOR__HORIZON_S", "8")
    environment = ReconcilingEnvironment()
    assert (environment.reconciler.overdue_s, environment.janitor.horizon_s) == (7, 8)
    monkeypatch.setenv("DARKROOM_RECONCILER__TRIES", "0")
    with pytest.raises(ValidationError, match="tries"):
        ReconcilingEnvironment()
