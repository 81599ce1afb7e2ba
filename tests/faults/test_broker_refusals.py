"""A broker that rejects writes: the worker exits without an ack, and a later worker does the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing
from streams import topics
from streams.process.exit_codes import EXIT_UNDELIVERABLE
from tests.support.deployment import PATIENCE_S, Deployment, deployed, until
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents, with a short timeout for Kafka's confirmation."""
    settings = {"DARKROOM_KAFKA__REQUEST_TIMEOUT_S": "6"}
    with deployed(
        kafka.bootstrap, tmp_path_factory.mktemp("refusals"), agents=LIGHT_AGENTS, settings=settings
    ) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*LIGHT_AGENTS)
        yield deployment


def test_an_undeliverable_event_is_not_lost(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """A worker that cannot deliver exits with 70 and commits nothing; after a restart each image ends once."""
    sent = Sent(deployment, images)
    with _altered(deployment, topics.SANITIZED.name, "max.message.bytes", "64"):
        sent.send()
        assert deployment.children["sanitizer"].wait_blocking(PATIENCE_S) == EXIT_UNDELIVERABLE
        assert not deployment.records(topics.SANITIZED)
        assert deployment.lag("sanitizer") == len(images)
    deployment.start("sanitizer")
    sent.check(calm)


def test_a_dead_letter_that_cannot_be_written_is_not_lost(
    deployment: Deployment, images: dict[str, bytes], calm: Calm
) -> None:
    """A worker that cannot dead-letter exits with 70 before the ack; the restarted one writes the event unchanged."""
    dead = topics.dead_topic("sanitizer")
    poison = Outgoing(topics.UPLOADED.name, b"poison", b"\x00 no event \xff", (("ce_type", b"x.v1"), ("odd", b"\xfe")))
    with _altered(deployment, dead, "max.message.bytes", "64"):
        deployment.produce([poison])
        assert deployment.children["sanitizer"].wait_blocking(PATIENCE_S) == EXIT_UNDELIVERABLE
        assert not deployment.records(dead)
        assert deployment.lag("sanitizer") == 1
    deployment.start("sanitizer")
    sent = Sent(deployment, images)
    sent.send()
    sent.check(calm)
    (letter,) = deployment.records(dead)
    kept = tuple(pair for pair in letter.headers if not pair[0].startswith("dlq."))
    assert (letter.key, letter.value, kept) == (poison.key, poison.value, poison.headers)


@contextmanager
def _altered(deployment: Deployment, topic: str, setting: str, value: str) -> Iterator[None]:
    """Change a setting of a topic on the broker within the block.

    A single broker rejects writes only by message size: it treats min.insync.replicas as at most 1.
    """
    admin = AdminClient({"bootstrap.servers": deployment.kafka.bootstrap})
    name = deployment.kafka.topic(topic)

    def current() -> str:
        (future,) = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name)]).values()
        return str(future.result(30)[setting].value)

    def change(wanted: str) -> None:
        entry = ConfigEntry(setting, wanted, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
        (future,) = admin.incremental_alter_configs([resource]).values()
        future.result(30)
        until(lambda: current() == wanted, f"{topic} having {setting}={wanted}")

    before = current()
    change(value)
    try:
        yield
    finally:
        change(before)
