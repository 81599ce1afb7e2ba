"""Transaction markers: control records that have offsets but are never delivered to consumers.

The commit of a later event passes them. Markers after the last event would count as lag without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.kafka.access_errors import explained
from streams.kafka.security import aiokafka_arguments
from streams.settings import KafkaSettings

TIMEOUT_S = 10.0


async def trailing_markers(kafka: KafkaSettings, places: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Return the end offset of each partition that contains no event from the given offset on.

    Reads the log itself, so the result does not depend on any other consumer. Raises DependencyUnavailable.
    """
    consumer = AIOKafkaConsumer(**aiokafka_arguments(kafka), enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        await consumer.start()
        ends = await consumer.end_offsets(list(places))
        consumer.assign(list(places))
        for place, offset in places.items():
            consumer.seek(place, offset)
        return await _read(consumer, {place: end for place, end in ends.items() if end > places[place]})
    except KafkaError as error:
        raise await explained(kafka, error) from error
    finally:
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    empty: dict[TopicPartition, int] = {}
    left = dict(ends)
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while left and asyncio.get_running_loop().time() < deadline:
        for place in await consumer.getmany(*left, timeout_ms=500, max_records=1):
            left.pop(place, None)
        for place in [place for place, end in left.items() if await consumer.position(place) >= end]:
            empty[place] = left.pop(place)
    return empty
