"""Live progress while the gateway is killed or stopped with open streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx

from infra.local.kafka import LocalKafka
from schemas.values import DEFAULT_OWNER, job_id_of, new_image_id
from streams import topics
from tests.support.deployment import PATIENCE_S, Deployment, deployed, until
from tests.support.facts import Facts
from tests.support.server_sent_events import Sse, listening


def test_a_resumed_stream_misses_nothing_after_a_gateway_kill(kafka: LocalKafka, tmp_path: Path) -> None:
    """After SIGKILL the stream resumes at the next gateway with exactly the events not yet delivered."""
    with deployed(kafka.bootstrap, tmp_path, agents=("indexer",)) as deployment:
        deployment.start("core")
        until(lambda: _ready(deployment), "the gateway being ready")
        images = [new_image_id() for _ in range(2)]
        first, second = (Facts(image_id, owner=DEFAULT_OWNER, placed=True).all() for image_id in images)
        _, start = asyncio.run(_receive(deployment, "/api/v1/events", None, 0))
        deployment.publish(topics.FACTS, *first, second[0])
        received, last = asyncio.run(_receive(deployment, "/api/v1/events", start, 4))

        deployment.children.pop("core").kill()
        deployment.publish(topics.FACTS, *second[1:], first[2])  # a repeated fact is not delivered again
        deployment.start("core")
        until(lambda: _ready(deployment), "the gateway being ready again")
        rest, last = asyncio.run(_receive(deployment, "/api/v1/events", last, 8))
        delivered = Counter((event.data["image_id"], event.data.get("stage", event.name)) for event in received + rest)
        stages = ("sanitizer", "resizer", "ocr", "detector", "embedder", "completed")
        assert delivered == Counter((image_id, stage) for image_id in images for stage in stages)

        job = f"/api/v1/images/jobs/{job_id_of(images[1], 1)}/events"
        resumed, _ = asyncio.run(_receive(deployment, job, start, None))
        assert Counter(event.data.get("stage", event.name) for event in resumed) == Counter(stages)

        # A gateway that stops on SIGTERM ends its streams cleanly.
        async def stopped() -> int:
            async with _client(deployment) as client, listening(client, "/api/v1/events", last) as source:
                stopping = asyncio.create_task(asyncio.to_thread(deployment.terminate, "core"))
                assert await source.rest() == []
                return await stopping

        assert asyncio.run(stopped()) == 0


async def _receive(deployment: Deployment, path: str, last_id: str | None, count: int | None) -> tuple[list[Sse], str]:
    """Resume a stream; return `count` events, or all until its end, and the last event id."""
    async with asyncio.timeout(PATIENCE_S), _client(deployment) as client, listening(client, path, last_id) as source:
        if count is None:
            return await source.rest(), source.last_id
        received: list[Sse] = []
        while len(received) < count or not source.last_id:
            event = await (source.next() if count else source.until_positioned())
            if event is not None:
                received.append(event)
        return received, source.last_id


def _client(deployment: Deployment) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{deployment.port}", timeout=PATIENCE_S, trust_env=False)


def _ready(deployment: Deployment) -> bool:
    """Return whether the gateway accepts an event stream."""
    deployment.check_alive()
    try:
        with httpx.stream("GET", f"http://127.0.0.1:{deployment.port}/api/v1/events", timeout=10) as answer:
            return answer.is_success
    except httpx.TransportError:
        return False
