"""Events that are reordered, truncated or transactional: valid ones count once, the others are dead-lettered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Event, Outgoing
from schemas.events.facts import Fact
from schemas.values import ErrorCode, new_image_id
from streams import topics
from streams.topics import Topic
from tests.support.deployment import Deployment, deployed, message_of
from tests.support.facts import Facts
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent

IMAGES = 6


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents, with the dead-letter limit disabled."""
    settings = {
        "DARKROOM_LIMIT__SHARE": "1",
        "DARKROOM_LIMIT__IN_A_ROW": "1000",
    }
    with deployed(
        kafka.bootstrap, tmp_path_factory.mktemp("events"), agents=LIGHT_AGENTS, settings=settings
    ) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*LIGHT_AGENTS)
        yield deployment


def _facts(image_id: str) -> list[Fact]:
    return Facts(image_id, owner="default", placed=True).all()


def test_facts_in_reverse_order_give_the_same_record(deployment: Deployment) -> None:
    """Facts in reverse order, interleaved over all images, end each image once with the same record."""
    straight, reverse = [new_image_id() for _ in range(IMAGES)], [new_image_id() for _ in range(IMAGES)]
    deployment.publish(topics.FACTS, *(fact for image_id in straight for fact in _facts(image_id)))
    backwards = [reversed(_facts(image_id)) for image_id in reverse]
    deployment.publish(topics.FACTS, *(fact for facts in zip(*backwards, strict=True) for fact in facts))
    deployment.until_ended([*straight, *reverse])
    deployment.until_idle("indexer")
    outcomes = deployment.outcomes()
    assert {image_id: len(outcomes[image_id]) for image_id in (*straight, *reverse)} == dict.fromkeys(
        (*straight, *reverse), 1
    )
    assert len({_known(deployment, image_id) for image_id in (*straight, *reverse)}) == 1


def test_a_truncated_event_is_dead_lettered_unchanged(
    deployment: Deployment, images: dict[str, bytes], calm: Calm
) -> None:
    """Truncated events are dead-lettered byte for byte; the valid ones among them are processed."""
    sent = Sent(deployment, images)
    first = deployment.uploaded(next(iter(images.values())))
    cut = {
        "sanitizer": _cut(topics.UPLOADED, first),
        "indexer": [short for fact in _facts(new_image_id()) for short in _cut(topics.FACTS, fact)],
    }
    deployment.produce(message for messages in cut.values() for message in messages)
    sent.send()
    sent.check(calm)
    for agent, messages in cut.items():
        letters = deployment.records(topics.dead_topic(agent))
        assert {letter.header("dlq.error.code") for letter in letters} == {ErrorCode.MALFORMED_EVENT.value}
        found = Counter((r.header("dlq.original.topic"), r.key, r.value, _own(r.headers)) for r in letters)
        assert found == Counter((m.topic, m.key, m.value, tuple(m.headers)) for m in messages), agent


def test_transaction_markers_block_nothing(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """Commits pass the offsets of transaction markers, between and after events: nothing lost, no lag left."""
    sent = Sent(deployment, images)
    producer = Producer(
        {
            "bootstrap.servers": deployment.kafka.bootstrap,
            "partitioner": "murmur2_random",
            "transactional.id": deployment.kafka.prefix,
        }
    )
    producer.init_transactions(60)
    for name, data in images.items():
        event = deployment.uploaded(data)
        sent.names[event.image_id] = name
        for commits in (False, True, False):  # the aborted and the committed event are the same
            producer.begin_transaction()
            message = message_of(topics.UPLOADED, event)
            producer.produce(
                deployment.kafka.topic(message.topic),
                key=message.key,
                value=message.value,
                headers=list(message.headers),
            )
            producer.flush(60)
            if commits:
                producer.commit_transaction(60)
            else:
                producer.abort_transaction(60)
    sent.check(calm)
    sent.send()
    sent.check(calm)


def _known(deployment: Deployment, image_id: str) -> str:
    """Return the result of an image without its id and its completion time."""
    result = deployment.result(image_id).model_copy(update={"completed_at": None})
    return json.dumps(result.model_dump(mode="json"), sort_keys=True).replace(image_id, "the image")


def _cut(topic: Topic, event: Event) -> list[Outgoing]:
    """Return the event's message with its body cut after each quarter, and before its last byte."""
    whole = message_of(topic, event)
    body = whole.value or b""
    ends = (0, len(body) // 4, len(body) // 2, 3 * len(body) // 4, len(body) - 1)
    return [Outgoing(whole.topic, whole.key, body[:end], whole.headers) for end in ends]


def _own(headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    return tuple(pair for pair in headers if not pair[0].startswith("dlq."))
