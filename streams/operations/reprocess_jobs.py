"""Reprocessing: jobs that rerun one stage for a selection of images, rate-limited, in the bulk lane.

A job is an object, `reprocess/{id}.json`, created by the gateway and then written by the runner alone. The object
`reprocess/{id}.cancelled` requests its cancellation. The runner saves its cursor every few seconds. After a crash it
repeats the images since the last save: their events have the same ids, and completed reruns emit none.
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
from schemas.values import Profile, Value
from streams.errors import DependencyUnavailable
from streams.kafka.messages import in_bulk
from streams.kafka.producer import Deliverer
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.operations.image_filter import Selection, WrongFilter, moment, read_selection
from streams.operations.rerun_events import (
    RERUNNABLE,
    SANITIZER,
    AlreadyDone,
    Rerun,
    RerunSkipped,
    Restarts,
    SkipReason,
    check_profile,
    rerun_analysis,
)
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.telemetry import metrics

log = structlog.get_logger(__name__)

PREFIX = "reprocess/"
PER_SECOND = 20.0
MAX_WAITING = 1000  # events in the bulk lane at which no more are added
KEPT = 100  # ended jobs
PAGE = 128  # images read at once
SLICE_S = 2.0  # between saves: the work repeated after a crash
POLL_S = 2.0
_JOB_BYTES = 1 << 20
_SMOOTHING = 0.3  # weight of the last slice in the rate
_SOURCE = "darkroom/reprocess"

Waiting = Callable[[], Awaitable[int]]


class JobState(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    DONE = "done"  # every event is in the log
    CANCELLED = "cancelled"
    FAILED = "failed"


class ReprocessJob(Value):
    """One request to rerun a stage. Images are processed in the order of their ids; `cursor` is the last one."""

    id: str
    stage: str
    where: str = ""
    per_second: float = Field(default=PER_SECOND, gt=0)
    profile: Profile | None = Field(default=None, description="parameters and further stages: rerun_events.profile_of")
    run: int = Field(gt=0, description="when it was requested, unix milliseconds; unique")
    state: JobState = JobState.RUNNING
    total: int | None = Field(default=None, description="images selected; None while they are counted")
    done: int = Field(default=0, description="images whose rerun is in the log")
    skipped: int = 0
    reasons: dict[str, int] = Field(default_factory=dict, description="why images were skipped -> how many")
    cursor: str | None = None
    rate: float = Field(default=0.0, description="images a second, smoothed")
    started_at: str
    updated_at: str
    error: str | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds until every event is in the log, None if unknown."""
        if self.state is not JobState.RUNNING or self.total is None or self.rate <= 0:
            return None
        return max(0, self.total - self.done - self.skipped) / self.rate

    def selects(self, selection: Selection, record: ImageRecord) -> bool:
        """Return whether the job includes an image. Those accepted since the request ran the new version already."""
        submitted = moment(record.submitted_at or "")
        requested = moment(self.started_at)
        return (submitted is None or requested is None or submitted <= requested) and selection.matches(record)


def drafted(
    stage: str, where: str = "", per_second: float = PER_SECOND, profile: Profile | None = None
) -> ReprocessJob:
    """Return a job that is not stored yet. Raises WrongFilter, WrongProfile, and ValueError for the stage."""
    if stage not in RERUNNABLE:
        raise ValueError(f"stage {stage[:40]!r} cannot be rerun; allowed: {', '.join(RERUNNABLE)}")
    read_selection(where)
    check_profile(stage, profile)
    run, requested = time.time_ns() // 1_000_000, now()
    return ReprocessJob(
        id=f"{stage}-{run}", stage=stage, where=where, per_second=per_second, profile=profile, run=run,
        started_at=requested, updated_at=requested,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReprocessJobs:
    """Stores jobs. Calls raise DependencyUnavailable."""

    files: FileStore

    async def start(self, draft: ReprocessJob) -> ReprocessJob:
        """Store a job for the runner, with a higher run than any other job."""
        known = await self.all()
        run = max([draft.run, *(job.run + 1 for job in known)])
        job = draft.model_copy(update={"id": f"{draft.stage}-{run}", "run": run})
        await self.save(job)
        for old in [job for job in known if job.state is not JobState.RUNNING][KEPT:]:
            await self.files.delete(_key(old.id))
            await self.files.delete(_cancel_key(old.id))
        return job

    async def get(self, job_id: str) -> ReprocessJob | None:
        """Return a job, None if there is none with that id."""
        try:
            job = ReprocessJob.model_validate_json(await self.files.get(_key(job_id), limit=_JOB_BYTES))
        except (ObjectMissing, ValueError):  # ValidationError is a ValueError
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
        """Cancel a job; events already in the log are processed. None if there is no such job."""
        job = await self.get(job_id)
        if job is not None and job.state is JobState.RUNNING:
            # A separate object, because the runner may be saving the job.
            await self.files.put(_cancel_key(job_id), b"{}", content_type="application/json")
            return job.model_copy(update={"state": JobState.CANCELLED})
        return job

    async def save(self, job: ReprocessJob) -> None:
        """Store a job; once it has ended, delete its cancellation request."""
        await self.files.put(_key(job.id), job.model_dump_json().encode(), content_type="application/json")
        if job.state is not JobState.RUNNING:
            await self.files.delete(_cancel_key(job.id))


async def selected(job: ReprocessJob, read_model: ReadModel) -> AsyncIterator[ImageRecord]:
    """Yield the images of a job, from its cursor on. Raises WrongFilter and DependencyUnavailable."""
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
    """Runs the jobs, in one process; a second one would emit the same events again.

    `waiting` returns the number of events in the bulk lane; `clock` and `sleep` use seconds.
    """

    files: FileStore
    read_model: ReadModel
    deliverer: Deliverer
    waiting: Waiting | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _scans: dict[str, AsyncIterator[ImageRecord]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Run jobs until cancelled; they wait while a dependency is unavailable."""
        while True:
            try:
                worked = await self.run_due()
            except DependencyUnavailable as error:
                log.warning("reprocessing waits for a dependency", reason=str(error))
                worked = False
            if not worked:
                await self.sleep(POLL_S)

    async def run_due(self) -> bool:
        """Run each job for a few seconds; return whether one made progress. Raises DependencyUnavailable."""
        slices = await asyncio.gather(*[self._slice(job) for job in await self._running()], return_exceptions=True)
        for progress in slices:
            if isinstance(progress, BaseException):
                raise progress
        return any(slices)

    async def _running(self) -> list[ReprocessJob]:
        jobs = ReprocessJobs(self.files)
        running: list[ReprocessJob] = []
        for job_id in set(await jobs.ids()) - self._ended:
            job = await jobs.get(job_id)
            if job is not None and job.state is JobState.RUNNING:
                running.append(job)
                continue
            if job is not None and await self.files.stat(_cancel_key(job_id)) is not None:
                await self._end(job, job.state, job.error)
            self._ended.add(job_id)
        return running

    async def _slice(self, job: ReprocessJob) -> bool:
        try:
            if job.total is None:
                job = await self._save(job, total=await self._count(job))
                log.info("reprocessing started", job=job.id, stage=job.stage, where=job.where, images=job.total)
            return await self._process(job)
        except WrongFilter as error:
            await self._end(job, JobState.FAILED, str(error))
            return True
        except BaseException:
            self._scans.pop(job.id, None)  # it resumes from the saved cursor
            raise

    async def _count(self, job: ReprocessJob) -> int:
        count = 0
        async for _ in selected(job, self.read_model):
            count += 1
        return count

    async def _process(self, job: ReprocessJob) -> bool:
        """Process images for one slice at the job's rate and save the cursor; return False if the bulk lane is full."""
        room = MAX_WAITING - (await self.waiting() if self.waiting is not None else 0)
        if room <= 0:
            return False
        scan = self._scans.setdefault(job.id, selected(job, self.read_model))
        began, count, cursor, complete = self.clock(), 0, job.cursor, False
        done, reasons = job.done, dict(job.reasons)
        while count < room and self.clock() - began < SLICE_S:
            record = await anext(scan, None)
            if record is None:
                complete = True
                break
            skipped = await self._emit(job, record.image_id)
            count, cursor = count + 1, record.image_id
            if skipped is None:
                done += 1
            else:
                reasons[skipped] = reasons.get(skipped, 0) + 1
            metrics.REPROCESSED.labels(job.stage, skipped or "said").inc()
            await self._pace(began, count, job.per_second)
        rate = count / max(self.clock() - began, 0.001)
        job = await self._save(
            job,
            done=done,
            reasons=reasons,
            skipped=sum(reasons.values()),
            cursor=cursor,
            rate=rate if job.rate == 0 else job.rate + _SMOOTHING * (rate - job.rate),
        )
        if complete:
            await self._end(job, JobState.DONE, None)
        return True

    async def _pace(self, began: float, count: int, per_second: float) -> None:
        ahead = began + count / per_second - self.clock()
        if ahead > 0:
            await self.sleep(ahead)

    async def _emit(self, job: ReprocessJob, image_id: str) -> str | None:
        """Emit the event that reruns one image, for each of its stages; return the reason if it is skipped."""
        record = await self.read_model.get(image_id)  # it may have changed since the scan
        if record is None:
            return SkipReason.DELETED.value
        try:
            rerun = await self._rerun(job, record)
        except AlreadyDone:
            return None
        except RerunSkipped as skipped:
            return skipped.reason.value
        event = rerun.event
        headers = event.headers(source=_SOURCE)
        messages = [Outgoing(target, event.key(), event.body(), headers) for target in rerun.targets]
        await self.deliverer.deliver([in_bulk(message) for message in messages])
        return None

    async def _rerun(self, job: ReprocessJob, record: ImageRecord) -> Rerun:
        if job.stage == SANITIZER:
            return await Restarts(self.files).restart(record, job.started_at, job.profile)
        return rerun_analysis(record, job.stage, job.run, job.profile)

    async def _save(self, job: ReprocessJob, **changes: object) -> ReprocessJob:
        saved = job.model_copy(update={**changes, "updated_at": now()})
        await ReprocessJobs(self.files).save(saved)
        return saved

    async def _end(self, job: ReprocessJob, state: JobState, error: str | None) -> None:
        self._scans.pop(job.id, None)
        await self._save(job, state=state, error=error)
        log.info("reprocessing ended", job=job.id, state=state.value, done=job.done, skipped=job.skipped, error=error)


def _key(job_id: str) -> str:
    return f"{PREFIX}{job_id}.json"


def _cancel_key(job_id: str) -> str:
    return f"{PREFIX}{job_id}.cancelled"
