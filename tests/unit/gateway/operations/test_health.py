"""Readiness checks every part, with a timeout, and isolates failures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from darkroom.processes.readiness import Groups, agents_part, kafka_part, worst
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.operations.health import Parts, files_part
from streams.concurrency.circuit_breaker import Breakers, State
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.object_store.factory import open_files
from streams.object_store.with_breakers import READS, WRITES
from streams.operations.agent_pauses import Control
from streams.settings import BreakerSettings, FilesSettings, KafkaSettings
from tests.support.gateway_components import Sink, client_of, settings


async def well() -> tuple[bool, str]:
    return True, "fine"


class Members(KafkaAdmin):
    """A group with one agent's worker that counts its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(KafkaSettings(bootstrap="127.0.0.1:1"))
        self.error = error
        self.asked = 0

    async def members(self, agents: object = ()) -> dict[str, int]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return {"ocr": 1}


async def test_a_part_that_breaks_or_hangs_is_not_ready() -> None:
    """A part that raises and one that hangs are not ready; the others are still reported."""

    async def breaks() -> tuple[bool, str]:
        raise RuntimeError("password=hunter2")

    async def hangs() -> tuple[bool, str]:
        await asyncio.Event().wait()
        return True, ""

    found = await Parts({"a": well, "b": breaks, "c": hangs}, timeout_s=0.05).check()
    found_parts = {name: (part.ok, part.state, part.detail) for name, part in found.items()}
    away = (False, "down", "does not answer")
    assert found_parts == {"a": (True, "ok", "fine"), "b": away, "c": away}


async def test_concurrent_probes_share_one_check() -> None:
    """Within the cache time concurrent probes check every part once."""
    asked = 0

    async def counts() -> tuple[bool, str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return True, ""

    parts = Parts({"a": counts}, timeout_s=1, cache_s=3600)
    await asyncio.gather(*(parts.check() for _ in range(20)))
    assert asked == 1
    parts.cache_s = -1
    await parts.check()
    assert asked == 2


async def test_each_part_has_state_latency_and_breaker(tmp_path: Path) -> None:
    """The response has each part's state, latency and breaker; an open breaker degrades it."""
    breakers = Breakers(BreakerSettings(failures=1, open_s=3600))
    async with open_files(FilesSettings(directory=tmp_path), breakers) as files:

        async def answers() -> tuple[bool, str]:
            return True, "answers"

        readiness = Parts(
            {"files": answers, "other": well},
            timeout_s=5,
            cache_s=-1,
            breakers={"files": worst(breakers, READS, WRITES)},
        )
        app = ingest_app(settings(), IngestComponents(files=files, events=Sink(), readiness=readiness))
        async with client_of(app) as client:
            found = (await client.get("/health/ready")).json()["parts"]
            assert (found["files"]["state"], found["files"]["breaker"]) == ("ok", "closed")
            assert found["files"]["latency_ms"] >= 0
            assert "breaker" not in found["other"]
            _open(breakers)
            body = (await client.get("/api/v1/health")).json()
            assert (body["parts"]["files"]["state"], body["parts"]["files"]["breaker"]) == ("degraded", "open")
            assert body["status"] == "degraded"


def _open(breakers: Breakers) -> None:
    (breaker, _) = breakers._all[WRITES]
    with pytest.raises(DependencyUnavailable), breaker.passing():
        raise DependencyUnavailable("no store at 10.0.0.7")


async def test_the_worst_of_several_breakers_is_reported() -> None:
    """Of a dependency's read and write breakers the worse one is reported."""
    breakers = Breakers(BreakerSettings(failures=1, open_s=3600))

    async def ask() -> None:
        pass

    breakers.add(READS, ask)
    breakers.add(WRITES, ask)
    look = worst(breakers, READS, WRITES)
    assert look() is State.CLOSED
    _open(breakers)
    assert look() is State.OPEN


async def test_kafka_is_called_once_for_brokers_and_agents(tmp_path: Path) -> None:
    """Both parts share one call; if it fails neither is ready, and no address is exposed."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        for admin, kafka, agents in (
            (Members(), "ok", "down"),
            (Members(DependencyUnavailable("at 10.0.0.7")), "down", "down"),
        ):
            groups = Groups(admin, timeout_s=5)
            parts = {"kafka": kafka_part(groups), "agents": agents_part(groups, Control(files), ("ocr", "resizer"))}
            found = await Parts(parts, timeout_s=5).check()
            assert (found["kafka"].state, found["agents"].state) == (kafka, agents)
            assert admin.asked == 1
            assert "10.0.0.7" not in str(found)
        assert found["kafka"].detail == "does not answer"


async def test_an_available_store_is_ready(tmp_path: Path) -> None:
    """The object store's part writes and reads an object."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        found = await Parts({"files": files_part(files)}, timeout_s=5).check()
        assert (found["files"].ok, found["files"].detail) == (True, "objects can be written and read")
