"""A read model that fails one call in five: every fact is recorded, and each outcome is emitted once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agents.stages.indexer import STAGE, IndexerSettings, Tools
from schemas.events.envelope import Outgoing, Record
from schemas.events.outcomes import ImageCompleted
from schemas.values import ImageState, StageState, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings, RetrySettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.facts import Facts
from tests.support.stage_kit import bench, message

IMAGES = 30
ONE_IN = 5


class FailingReadModel:
    """A read model of which one call in five fails, before or after its effect."""

    def __init__(self, read_model: ReadModel) -> None:
        self._read_model = read_model
        self._chance = random.Random(4)
        self.failed = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._read_model, name)

        async def toxic(*args: object, **more: object) -> object:
            fails, late = self._chance.randrange(ONE_IN) == 0, self._chance.random() < 0.5
            if fails and not late:
                self._fail()
            answer = await call(*args, **more)
            if fails:
                self._fail()
            return answer

        return toxic

    def _fail(self) -> None:
        self.failed += 1
        raise DependencyUnavailable("one call in five")


async def test_a_read_model_that_fails_one_call_in_five(tmp_path: Path) -> None:
    """Each image's record is complete, its outcome has one id, and no fact is dead-lettered."""
    images = [new_image_id() for _ in range(IMAGES)]
    log, retry = MemoryLog(), RetrySettings(in_place_tries=6, backoff_s=0.001)
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        toxic = FailingReadModel(read_model)
        one_by_one = IndexerSettings(concurrency=1)  # for a deterministic order of calls
        on = bench(STAGE, files, log, settings=one_by_one, retry=retry, tools=Tools(toxic, files))  # type: ignore[arg-type]
        for image_id in images:
            for fact in Facts(image_id, placed=True).all():
                log.append(message(fact, topics.FACTS.name))
        retries = topics.retry_topic("indexer")
        worker = MemoryWorker(log, "indexer", (topics.FACTS.name, retries), on.intake)
        await worker.until_idle(patience_s=60)
        moved: set[tuple[str, int, int]] = set()
        while late := [record for record in _delayed(log) if _place(record) not in moved]:  # as the router does
            for record in late:
                log.append(Outgoing(retries, record.key, record.value, record.headers))
            moved |= {_place(record) for record in late}
            await worker.until_idle(patience_s=60)
        await worker.stop()
        records = [await read_model.get(image_id) for image_id in images]
    assert toxic.failed > IMAGES
    assert not on.fatal
    assert not log.records(topics.dead_topic("indexer"))
    for known in records:
        assert known is not None
        assert known.state is ImageState.COMPLETED
        assert {stage.state for stage in known.stages.values()} == {StageState.DONE}
        assert known.has_vector
    outcomes = {
        (r.header("ce_subject"), r.header("ce_id"), r.header("ce_type")) for r in log.records(topics.OUTCOMES.name)
    }
    assert sorted(str(subject) for subject, _, _ in outcomes) == sorted(images)
    assert {kind for _, _, kind in outcomes} == {ImageCompleted.type}


def _delayed(log: MemoryLog) -> list[Record]:
    tiers = [topics.delay_topic("indexer", tier) for tier in topics.DELAY_TIERS]
    return [record for tier in tiers for record in log.records(tier)]


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
