"""Live progress while the gateway is killed and stopped under its listeners."""

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


def test_a_listener_misses_nothing_when_the_gateway_is_killed(kafka: LocalKafka, tmp_path: Path) -> None:
    """After kill -9 the stream goes on at the next gateway: of all that was said, exactly the rest comes."""
    with deployed(kafka.bootstrap, tmp_path, agents=("indexer",)) as deployment:
        deployment.start("core")
        until(lambda: _ready(deployment), "the gateway being ready")
        images = [new_image_id() for _ in range(2)]
        first, second = (Facts(image_id, owner=DEFAULT_OWNER).all() for image_id in images)
        _, start = asyncio.run(_hear(deployment, "/api/v1/events", None, 0))
        deployment.publish(topics.FACTS, *first, second[0])
        heard, last = asyncio.run(_hear(deployment, "/api/v1/events", start, 4))

        deployment.children.pop("core").kill()
        deployment.publish(topics.FACTS, *second[1:], first[2])  # what is said again is not told again
        deployment.start("core")
        until(lambda: _ready(deployment), "the gateway being ready again")
        rest, last = asyncio.run(_hear(deployment, "/api/v1/events", last, 8))
        told = Counter((event.data["image_id"], event.data.get("stage", event.name)) for event in heard + rest)
        stages = ("sanitizer", "resizer", "ocr", "detector", "embedder", "completed")
        assert told == Counter((image_id, stage) for image_id in images for stage in stages)

        job = f"/api/v1/images/jobs/{job_id_of(images[1], 1)}/events"
        resumed, _ = asyncio.run(_hear(deployment, job, start, None))
        assert Counter(event.data.get("stage", event.name) for event in resumed) == Counter(stages)

        # A gateway that is stopped ends its streams whole, so that nobody waits and nobody sees a broken one.
        async def stopped() -> int:
            async with _client(deployment) as client, listening(client, "/api/v1/events", last) as source:
                stopping = asyncio.create_task(asyncio.to_thread(deployment.terminate, "core"))
                assert await source.rest() == []
                return await stopping

        assert asyncio.run(stopped()) == 0


async def _hear(deployment: Deployment, path: str, last_id: str | None, count: int | None) -> tuple[list[Sse], str]:
    """Resume, hear so many events, or all until the stream ends; return them, and where to go on."""
    async with asyncio.timeout(PATIENCE_S), _client(deployment) as client, listening(client, path, last_id) as source:
        if count is None:
            return await source.rest(), source.last_id
        heard: list[Sse] = []
        while len(heard) < count or not source.last_id:
            event = await (source.next() if count else source.until_positioned())
            if event is not None:
                heard.append(event)
        return heard, source.last_id


def _client(deployment: Deployment) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{deployment.port}", timeout=PATIENCE_S, trust_env=False)


def _ready(deployment: Deployment) -> bool:
    """Say whether the gateway answers, and what happens now would be told."""
    deployment.check_alive()
    try:
        with httpx.stream("GET", f"http://127.0.0.1:{deployment.port}/api/v1/events", timeout=10) as answer:
            return answer.is_success
    except httpx.TransportError:
        return False
