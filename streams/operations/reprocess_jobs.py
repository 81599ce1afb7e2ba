"""Reprocessing: jobs that run one stage again for a selection of images, slowly, in the bulk lane.

A job is an object, `reprocess/{id}.json`, written by the gateway and then by the runner alone. An object beside it,
`reprocess/{id}.cancelled`, asks the runner to stop. The runner saves how far it is every few seconds. After a death it
goes over the images of those seconds again: their events say the same ids, and what has been done says nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from pydantic import Field

from schemas.events.envelope import Outgoing, now
from schemas.values import Value
from streams.errors import DependencyUnavailable
from streams.kafka.messages import in_bulk
from streams.kafka.producer import Deliverer
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.operations.image_filter import Selection, WrongFilter, moment, read_selection
from streams.operations.rerun_events import RERUNNABLE, DoneAlready, NotAgain, Rerun, Restarts, WhyNot, rerun_analysis
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.telemetry import metrics

log = structlog.get_logger(__name__)

PREFIX = "reprocess/"
PER_SECOND = 20.0
MOST_WAITING = 1000  # events in the bulk lane; more are not added
KEPT = 100  # jobs that have ended, the newest
PAGE = 128  # images read at once
TURN_S = 2.0  # between saves: what is gone over again after a death
POLL_S = 2.0
_JOB_BYTES = 1 << 20
_SMOOTHING = 0.3  # weight of the last turn in the rate
_SOURCE = "darkroom/reprocess"

Waiting = Callable[[], Awaitable[int]]


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"  # every event is in the log
    CANCELLED = "cancelled"
    FAILED = "failed"


class ReprocessJob(Value):
    """One request to run a stage again. Images are gone over in the order of their ids, up to `cursor` so far."""

    id: str
    stage: str
    where: str = ""
    per_second: float = Field(default=PER_SECOND, gt=0)
    run: int = Field(gt=0, description="when it was asked for, unix milliseconds; no two jobs have the same")
    state: JobState = JobState.RUNNING
    total: int | None = Field(default=None, description="images selected; None while they are counted")
    done: int = Field(default=0, description="images whose rerun is in the log")
    skipped: int = 0
    reasons: dict[str, int] = Field(default_factory=dict, description="why images were skipped -> how many")
    cursor: str | None = None
    rate: float = Field(default=0.0, description="images a second, lately")
    started_at: str
    updated_at: str
    error: str | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds until every event is in the log, None while nobody can say."""
        if self.state is not JobState.RUNNING or self.total is None or self.rate <= 0:
            return None
        return max(0, self.total - self.done - self.skipped) / self.rate

    def selects(self, selection: Selection, record: ImageRecord) -> bool:
        """Say whether a rerun of this image was asked for: those accepted since are made by the new version anyway."""
        submitted = moment(record.submitted_at or "")
        asked = moment(self.started_at)
        return (submitted is None or asked is None or submitted <= asked) and selection.holds(record)


def drafted(stage: str, where: str = "", per_second: float = PER_SECOND) -> ReprocessJob:
    """Return a job nobody carries out yet. Raises WrongFilter for a filter, ValueError for a stage, that is none."""
    if stage not in RERUNNABLE:
        raise ValueError(f"stage {stage[:40]!r} cannot run again; these can: {', '.join(RERUNNABLE)}")
    read_selection(where)
    run, asked = time.time_ns() // 1_000_000, now()
    return ReprocessJob(
        id=f"{stage}-{run}", stage=stage, where=where, per_second=per_second, run=run, started_at=asked,
        updated_at=asked,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReprocessJobs:
    """All jobs. Calls raise DependencyUnavailable."""

    files: FileStore

    async def start(self, draft: ReprocessJob) -> ReprocessJob:
        """Have a rerun carried out, as the latest of all."""
        known = await self.all()
        run = max([draft.run, *(job.run + 1 for job in known)])
        job = draft.model_copy(update={"id": f"{draft.stage}-{run}", "run": run})
        await self.save(job)
        for old in [job for job in known if job.state is not JobState.RUNNING][KEPT:]:
            await self.files.delete(_key(old.id))
            await self.files.delete(_cancel_key(old.id))
        return job

    async def get(self, job_id: str) -> ReprocessJob | None:
        """Return a job as it stands, None if there is none of that id."""
        try:
            job = ReprocessJob.model_validate_json(await self.files.get(_key(job_id), limit=_JOB_BYTES))
        except (ObjectMissing, ValueError):  # a broken object is a ValidationError, which is one
            return None
        if job.state is JobState.RUNNING and await self.files.stat(_cancel_key(job_id)) is not None:
            return job.model_copy(update={"state": JobState.CANCELLED})
        return job

    async def ids(self) -> list[str]:
        """Return the ids of every job."""
        names = [found.key.removeprefix(PREFIX) async for found in self.files.list(PREFIX)]
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    async def all(self) -> list[ReprocessJob]:
        """Return every job, newest first."""
        jobs = [await self.get(job_id) for job_id in await self.ids()]
        return sorted((job for job in jobs if job is not None), key=lambda job: -job.run)

    async def cancel(self, job_id: str) -> ReprocessJob | None:
        """Stop a job where it is; what is in the log already goes its way. None if there is no such job."""
        job = await self.get(job_id)
        if job is not None and job.state is JobState.RUNNING:
            # An object of its own: the runner may be saving the job this very moment.
            await self.files.put(_cancel_key(job_id), b"{}", content_type="application/json")
            return job.model_copy(update={"state": JobState.CANCELLED})
        return job

    async def save(self, job: ReprocessJob) -> None:
        """Write a job down; one that has ended needs no mark to stop it."""
        await self.files.put(_key(job.id), job.model_dump_json().encode(), content_type="application/json")
        if job.state is not JobState.RUNNING:
            await self.files.delete(_cancel_key(job.id))


async def selected(job: ReprocessJob, read_model: ReadModel) -> AsyncIterator[ImageRecord]:
    """Walk the images a job selects, from its cursor on. Raises WrongFilter and DependencyUnavailable."""
    selection = read_selection(job.where)
    after = job.cursor
    while True:
        page = await read_model.scan(state=selection.state, after=after, limit=PAGE)
        for record in page:
            if job.selects(selection, record):
                yield record
        if len(page) < PAGE:
            return
        after = page[-1].image_id


@dataclass(slots=True)
class ReprocessRunner:
    """Carries the jobs out. One process should; two would only say the same events twice.

    `waiting` tells how many events the bulk lane holds; `clock` and `sleep` count seconds.
    """

    files: FileStore
    read_model: ReadModel
    deliverer: Deliverer
    waiting: Waiting | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _walks: dict[str, AsyncIterator[ImageRecord]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Work on jobs until cancelled. While a dependency is away, jobs wait."""
        while True:
            try:
                worked = await self.run_due()
            except DependencyUnavailable as error:
                log.warning("reprocessing waits", reason=str(error))
                worked = False
            if not worked:
                await self.sleep(POLL_S)

    async def run_due(self) -> bool:
        """Give each running job a turn of a few seconds; say whether one did anything. Raises DependencyUnavailable."""
        turns = await asyncio.gather(*[self._turn(job) for job in await self._running()], return_exceptions=True)
        for turn in turns:
            if isinstance(turn, BaseException):
                raise turn
        return any(turns)

    async def _running(self) -> list[ReprocessJob]:
        jobs = ReprocessJobs(self.files)
        running: list[ReprocessJob] = []
        for job_id in set(await jobs.ids()) - self._ended:
            job = await jobs.get(job_id)
            if job is not None and job.state is JobState.RUNNING:
                running.append(job)
                continue
            if job is not None and await self.files.stat(_cancel_key(job_id)) is not None:
                await self._end(job, job.state, job.error)  # as a person wishes
            self._ended.add(job_id)
        return running

    async def _turn(self, job: ReprocessJob) -> bool:
        try:
            if job.total is None:
                job = await self._save(job, total=await self._count(job))
                log.info("reprocessing begins", job=job.id, stage=job.stage, where=job.where, images=job.total)
            return await self._walk(job)
        except WrongFilter as error:
            await self._end(job, JobState.FAILED, str(error))
            return True
        except BaseException:
            self._walks.pop(job.id, None)  # it goes on from the cursor that was saved
            raise

    async def _count(self, job: ReprocessJob) -> int:
        count = 0
        async for _ in selected(job, self.read_model):
            count += 1
        return count

    async def _walk(self, job: ReprocessJob) -> bool:
        """Go over images for one turn, at the job's pace; save how far it came."""
        room = MOST_WAITING - (await self.waiting() if self.waiting is not None else 0)
        if room <= 0:
            return False
        walk = self._walks.setdefault(job.id, selected(job, self.read_model))
        began, met, cursor, over = self.clock(), 0, job.cursor, False
        done, reasons = job.done, dict(job.reasons)
        while met < room and self.clock() - began < TURN_S:
            record = await anext(walk, None)
            if record is None:
                over = True
                break
            why_not = await self._again(job, record.image_id)
            met, cursor = met + 1, record.image_id
            if why_not is None:
                done += 1
            else:
                reasons[why_not] = reasons.get(why_not, 0) + 1
            metrics.REPROCESSED.labels(job.stage, why_not or "said").inc()
            await self._pace(began, met, job.per_second)
        rate = met / max(self.clock() - began, 0.001)
        job = await self._save(
            job,
            done=done,
            reasons=reasons,
            skipped=sum(reasons.values()),
            cursor=cursor,
            rate=rate if job.rate == 0 else job.rate + _SMOOTHING * (rate - job.rate),
        )
        if over:
            await self._end(job, JobState.DONE, None)
        return True

    async def _pace(self, began: float, met: int, per_second: float) -> None:
        ahead = began + met / per_second - self.clock()
        if ahead > 0:
            await self.sleep(ahead)

    async def _again(self, job: ReprocessJob, image_id: str) -> str | None:
        """Say the event that runs the stage of one image again; return why not, if not."""
        record = await self.read_model.get(image_id)  # the walk saw it a while ago
        if record is None:
            return WhyNot.DELETED.value
        try:
            rerun = await self._rerun(job, record)
        except DoneAlready:
            return None
        except NotAgain as refusal:
            return refusal.why.value
        event = rerun.event
        message = Outgoing(rerun.target, event.key(), event.body(), event.headers(source=_SOURCE))
        await self.deliverer.deliver([in_bulk(message)])
        return None

    async def _rerun(self, job: ReprocessJob, record: ImageRecord) -> Rerun:
        if job.stage == "sanitizer":
            return await Restarts(self.files).restart(record, job.started_at)
        return rerun_analysis(record, job.stage, job.run)

    async def _save(self, job: ReprocessJob, **changes: object) -> ReprocessJob:
        saved = job.model_copy(update={**changes, "updated_at": now()})
        await ReprocessJobs(self.files).save(saved)
        return saved

    async def _end(self, job: ReprocessJob, state: JobState, error: str | None) -> None:
        self._walks.pop(job.id, None)
        await self._save(job, state=state, error=error)
        log.info("reprocessing ended", job=job.id, state=state.value, done=job.done, skipped=job.skipped, error=error)


def _key(job_id: str) -> str:
    return f"{PREFIX}{job_id}.json"


def _cancel_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}.cancelled"
