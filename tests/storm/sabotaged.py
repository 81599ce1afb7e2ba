"""Run a process with one protection disabled: `python -m tests.storm.sabotaged PROTECTION agent NAME`.

The checks must report the violation: otherwise their success would prove nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from qdrant_client import models

from agents.indexing import record_annotations, record_facts
from darkroom.main import main
from gateway.images.lookup import Lookup
from schemas.events.envelope import Event, Outgoing
from streams.kafka.offset_ledger import Ledger, Slice
from streams.kafka.producer import EventProducer
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Change, ImageRecord
from streams.runtime import execution
from streams.runtime.tombstone_check import TombstoneCheck
from streams.stage import Outcome


def _disable_awaited_delivery() -> None:
    async def deliver(self: EventProducer, messages: Sequence[Outgoing]) -> None:
        producer = await self.connect()
        for message in messages:
            topic = self._settings.topic(message.topic)
            await producer.send(topic, key=message.key, value=message.value, headers=list(message.headers))

    EventProducer.deliver = deliver  # type: ignore[method-assign]


def _disable_ledger() -> None:
    def finish(self: Ledger[Any], where: Slice, offset: int) -> list[Any]:
        entries = self._open.get(where)
        return [entries.pop(offset).handle] if entries is not None and offset in entries else []

    Ledger.finish = finish  # type: ignore[method-assign]


def _disable_deletion_checks() -> None:
    async def drops(self: TombstoneCheck, event: Event, answer: Outcome | Exception | None = None) -> bool:
        return False

    real = record_annotations.update

    async def update(
        event: Event, change: Callable[[ImageRecord], Change | None], read_model: ReadModel, erasures: Tombstones
    ) -> ImageRecord | None:
        known = await read_model.get(event.image_id)
        if known is not None and (known.generation != event.generation or known.deleted):
            # Last write wins, as in a read model without generations.
            stub = known.model_copy(update={"generation": event.generation, "deleted": False, "stages": {}})
            anyhow = models.Filter(must=[models.HasIdCondition(has_id=[event.image_id])])
            inner: Any = getattr(read_model, "_inner", read_model)
            await inner._replace(stub, anyhow)
        return await real(event, change, read_model, erasures)

    async def refuse_deleted(self: Lookup, image_id: str, owner: str, generation: int) -> None:
        """Refuse nothing: the gateway looks for tombstones itself, and would hide what the read model shows."""

    TombstoneCheck.drops = drops  # type: ignore[method-assign]
    Lookup._refuse_deleted = refuse_deleted  # type: ignore[method-assign]
    record_facts.update = update  # type: ignore[attr-defined]
    record_facts._writable = lambda fact, known: True


def _disable_deterministic_keys() -> None:
    def result_key(owner: str, input_sha256: str, stage: str, version: str, parameters: str) -> str:
        return f"results/{owner}/{input_sha256}/{stage}/{version}/{uuid4().hex[:16]}.json"

    execution.result_key = result_key  # type: ignore[attr-defined]


PROTECTIONS: dict[str, Callable[[], None]] = {
    "awaited-delivery": _disable_awaited_delivery,
    "ledger": _disable_ledger,
    "generation-fence": _disable_deletion_checks,
    "compute-once-keys": _disable_deterministic_keys,
}


if __name__ == "__main__":
    PROTECTIONS[sys.argv.pop(1)]()
    main()
