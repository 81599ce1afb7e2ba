"""The router on a real Kafka: it moves events when they are due, unchanged."""

from __future__ import annotations

import time
from pathlib import Path

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing, Record
from streams.retries.retry_policy import DUE_HEADER
from streams.topics import AGENTS, delay_topic, retry_topic
from tests.support.deployment import deployed, until

LATER_S = 8.0


def _delayed(topic: str, key: bytes, due_ms: int, value: bytes | None = None) -> Outgoing:
    headers = ((DUE_HEADER, str(due_ms).encode()), ("ce_type", b"x"), ("retry.attempt", b"3"), ("odd", b"\xff\x00"))
    return Outgoing(topic, key, value if value is not None else b"\x00\xffbody of " + key, headers)


def test_due_events_move_and_others_stay(kafka: LocalKafka, tmp_path: Path) -> None:
    """Events reach their agent's retry topic when they are due, not before, in order, byte for byte."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        now_ms = int(time.time() * 1000)
        later_ms = now_ms + int(LATER_S * 1000)
        due = [_delayed(delay_topic(agent, "30s"), f"{agent} due".encode(), now_ms - 1000) for agent in AGENTS]
        later = _delayed(delay_topic("resizer", "5m"), b"resizer later", later_ms)
        behind = _delayed(delay_topic("resizer", "5m"), b"resizer later", now_ms - 1000, b"behind the one that waits")
        deployment.produce([later, behind, *due])

        def first_of(topic: str) -> Record:
            until(lambda: len(deployment.records(topic)) > 0, topic)
            return deployment.records(topic)[0]

        deployment.start("router")
        for agent, sent in zip(AGENTS, due, strict=True):
            first = first_of(retry_topic(agent))
            assert (first.key, first.value, first.headers) == (sent.key, sent.value, sent.headers)
        until(lambda: len(deployment.records(retry_topic("resizer"))) == 3, "the event that waited")
        _, *waited = deployment.records(retry_topic("resizer"))
        assert [(r.key, r.value, r.headers) for r in waited] == [(m.key, m.value, m.headers) for m in (later, behind)]
        assert waited[0].timestamp_ms >= later_ms, "the event was moved before it was due"
        assert deployment.terminate("router") == 0


def test_a_killed_router_loses_nothing(kafka: LocalKafka, tmp_path: Path) -> None:
    """After a router is killed and restarted, a waiting event still moves when it is due."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        now_ms = int(time.time() * 1000)
        waiting = _delayed(delay_topic("sanitizer", "5m"), b"waits", now_ms + 5000)
        deployment.produce([_delayed(delay_topic("sanitizer", "30s"), b"due", now_ms), waiting])
        deployment.start("router")
        until(lambda: len(deployment.records(retry_topic("sanitizer"))) >= 1, "the event that was due")
        deployment.children.pop("router").kill()
        deployment.start("router")
        until(lambda: len({r.key for r in deployment.records(retry_topic("sanitizer"))}) == 2, "the event that waited")
        moved = [r for r in deployment.records(retry_topic("sanitizer")) if r.key == b"waits"]
        assert {(r.value, r.headers) for r in moved} == {(waiting.value, waiting.headers)}
        assert moved[0].timestamp_ms >= now_ms + 5000
