"""A process of Darkroom with one protection turned off: `python -m tests.storm.sabotaged PROTECTION agent NAME`.

What follows must show in the books: a suite that cannot see a missing protection would prove nothing of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from pydantic import JsonValue

from agents.indexing import record_facts
from darkroom.main import main
from schemas.events.envelope import Event, Outgoing
from streams.kafka.offset_ledger import Ledger, Slice
from streams.kafka.producer import EventProducer
from streams.read_model.qdrant_embedded import LocalReadModel
from streams.read_model.qdrant_schema import to_payload
from streams.runtime import execution
from streams.runtime.tombstone_check import TombstoneCheck
from streams.stage import Outcome


def _delivery_not_awaited() -> None:
    async def deliver(self: EventProducer, messages: Sequence[Outgoing]) -> None:
        producer = await self.connect()
        for message in messages:
            topic = self._settings.topic(message.topic)
            await producer.send(topic, key=message.key, value=message.value, headers=list(message.headers))

    EventProducer.deliver = deliver  # type: ignore[method-assign]


def _acks_as_they_come() -> None:
    def finish(self: Ledger[Any], where: Slice, offset: int) -> list[Any]:
        entries = self._open.get(where)
        return [entries.pop(offset).handle] if entries is not None and offset in entries else []

    Ledger.finish = finish  # type: ignore[method-assign]


def _no_fence() -> None:
    async def drops(self: TombstoneCheck, event: Event, answer: Outcome | Exception | None = None) -> bool:
        return False

    real = LocalReadModel.merge

    async def merge(
        self: LocalReadModel, image_id: str, generation: int, patch: Mapping[str, JsonValue], **more: Any
    ) -> None:
        known = await self.get(image_id)
        if known is not None and known.generation != generation:
            # Whoever writes last is right: what a model without generations would do.
            stub = known.model_copy(update={"generation": generation, "deleted": False, "stages": {}})
            await self._call(lambda: self._put(image_id, to_payload(stub), {}))
        await real(self, image_id, generation, patch, **more)

    TombstoneCheck.drops = drops  # type: ignore[method-assign]
    LocalReadModel.merge = merge  # type: ignore[method-assign]
    record_facts._writable = lambda fact, known: True


def _random_keys() -> None:
    def result_key(owner: str, input_sha256: str, stage: str, version: str, parameters: str) -> str:
        return f"results/{owner}/{input_sha256}/{stage}/{version}/{uuid4().hex[:16]}.json"

    execution.result_key = result_key  # type: ignore[attr-defined]


PROTECTIONS: dict[str, Callable[[], None]] = {
    "awaited-delivery": _delivery_not_awaited,
    "ledger": _acks_as_they_come,
    "generation-fence": _no_fence,
    "compute-once-keys": _random_keys,
}


if __name__ == "__main__":
    PROTECTIONS[sys.argv.pop(1)]()
    main()
