"""Dead letters: the runner writes them byte for byte with the reason in headers; operators list, replay, discard them.

Every action on a letter is recorded in the object store (action, time, reason), which makes replays idempotent and
discards auditable. A letter of a deleted image stays in Kafka until its retention ends: it is never listed as open nor
replayed, and its contents are never returned.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass

from schemas.events.envelope import Outgoing, Record, now, subject_of
from schemas.values import ID_PATTERN, ErrorCode
from streams.kafka.bounded_read import read_topic
from streams.kafka.producer import Deliverer
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.object_store.tombstones import Tombstones
from streams.retries.retry_policy import ORIGIN_HEADERS, number_header
from streams.settings import KafkaSettings
from streams.topics import GIVES_UP, dead_topic, replay_topic

SCHEMA = "1"
MAX_MESSAGE = 1024  # characters of the error's message
MAX_STACK = 8192  # characters of the traceback, from its end
REPLAY_LIMIT = 3  # replays of one event; further ones are refused
_ID = re.compile(ID_PATTERN)
REPLAY_LIMIT_REACHED = "replay-limit"
ERASED = "erased"  # the action recorded for letters of deleted images
_SUBJECT = "dlq.subject"
_ADDED = ("dlq.", "retry.", "replay.")
# Headers returned for a letter of a deleted image: origin and error code. No message, no stack, no file name.
_WITHOUT_CONTENT = (
    "ce_subject", "ce_type", "dlq.agent", "dlq.attempt", "dlq.error.code", "dlq.first-failure.ts",
    "dlq.last-failure.ts", "dlq.original.topic", "dlq.original.partition", "dlq.original.offset", "dlq.subject",
    "replay.count",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the runner gave up."""

    code: ErrorCode
    error: BaseException
    attempts: int
    retriable: bool
    first_failure: str  # RFC 3339


def dead_letter(record: Record, agent: str, version: str, failure: Failure) -> Outgoing:
    """Return the dead letter of a record: key, value and headers unchanged, plus `dlq.*` headers."""
    topic, partition, offset = origin_of(record)
    stack = "".join(traceback.format_exception(failure.error))
    added = {
        "dlq.schema": SCHEMA,
        "dlq.agent": agent,
        "dlq.agent.version": version,
        "dlq.original.topic": topic,
        "dlq.original.partition": partition,
        "dlq.original.offset": offset,
        "dlq.original.timestamp": str(record.timestamp_ms),
        "dlq.first-failure.ts": failure.first_failure,
        "dlq.last-failure.ts": now(),
        "dlq.attempt": str(failure.attempts),
        "dlq.error.class": type(failure.error).__name__,
        "dlq.error.code": failure.code.value,
        "dlq.error.message": str(failure.error)[:MAX_MESSAGE],
        "dlq.error.stack": stack[-MAX_STACK:],
        "dlq.retriable": str(failure.retriable).lower(),
    }
    subject = subject_of(record)
    if subject is not None and record.header("ce_subject") is None:  # in structured mode it is in the body
        added[_SUBJECT] = subject
    kept = tuple((n, v) for n, v in record.headers if not n.startswith(("dlq.", "retry.")))
    return Outgoing(dead_topic(agent), record.key, record.value, (*kept, *((n, v.encode()) for n, v in added.items())))


def origin_of(record: Record) -> tuple[str, str, str]:
    """Return the topic, partition and offset of the event's first delivery, before any delay topic."""
    topic, partition, offset = ORIGIN_HEADERS
    if (origin := record.header(topic)) is not None:
        place, number = record.header(partition), record.header(offset)
        if place is not None and number is not None:
            return origin, place, number
    return record.topic, str(record.partition), str(record.offset)


def replay_of(record: Record, agent: str, replay_id: str) -> Outgoing:
    """Return the message that replays a dead letter: the original, with its attempts reset."""
    count = number_header(record, "replay.count") + 1
    kept = tuple((n, v) for n, v in record.headers if not n.startswith(_ADDED))
    topic, partition, offset = (
        record.header(f"dlq.original.{part}") or "" for part in ("topic", "partition", "offset")
    )
    added = (
        ("replay.id", replay_id),
        ("replay.count", str(count)),
        *zip(ORIGIN_HEADERS, (topic, partition, offset), strict=True),
    )
    return Outgoing(replay_topic(agent), record.key, record.value, (*kept, *((n, v.encode()) for n, v in added)))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter of an agent."""

    agent: str
    record: Record
    handled: str | None  # "replayed", "discarded" or "erased"; None: open

    @property
    def id(self) -> str:
        """The letter's id within its agent: partition and offset."""
        return f"{self.record.partition}-{self.record.offset}"

    @property
    def code(self) -> str:
        """The stable error code."""
        return self.record.header("dlq.error.code") or ""

    @property
    def message(self) -> str:
        """The error's message, for operators."""
        return self.record.header("dlq.error.message") or ""

    @property
    def image_id(self) -> str:
        """The image id, '' if unknown."""
        return (self.record.header("ce_subject") or self.record.header(_SUBJECT) or "").lower()

    @property
    def died_at(self) -> str:
        """When the runner wrote the letter, RFC 3339."""
        return self.record.header("dlq.last-failure.ts") or ""

    @property
    def replays(self) -> int:
        """How often the event was replayed before."""
        return number_header(self.record, "replay.count")


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter of letters; None matches any."""

    code: str | None = None
    image_id: str | None = None
    letter_id: str | None = None
    since: str | None = None  # RFC 3339

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter is selected."""
        return (
            (self.code is None or letter.code == self.code)
            and (self.image_id is None or letter.image_id == self.image_id)
            and (self.letter_id is None or letter.id == self.letter_id)
            and (self.since is None or letter.died_at >= self.since)
        )


class DeadLetterStore:
    """Lists, replays, discards and erases the dead letters of all agents."""

    def __init__(self, kafka: KafkaSettings, files: FileStore, deliverer: Deliverer) -> None:
        self._kafka = kafka
        self._files = files
        self._deliverer = deliverer

    async def letters(self, agent: str, selection: Selection, *, handled: bool = False) -> AsyncIterator[DeadLetter]:
        """Yield an agent's letters, oldest first; handled ones only if `handled`."""
        marks = await self._marks(agent)
        deleted: dict[str, bool] = {}
        for record in await asyncio.to_thread(read_topic, self._kafka, dead_topic(agent)):
            letter = DeadLetter(agent, record, None)
            key = marks.get(letter.id)
            if not selection.matches(letter) or (key is not None and not handled):
                continue
            if letter.image_id not in deleted:
                deleted[letter.image_id] = await self._is_deleted(letter.image_id)
            if deleted[letter.image_id] and not handled:
                continue
            act = await self._act_of(letter) if key is not None else None
            yield (
                DeadLetter(agent, _without_content(record), ERASED)
                if deleted[letter.image_id]
                else DeadLetter(agent, record, act)
            )

    async def known(self, agent: str, record: Record) -> DeadLetter:
        """Return a record of a dead topic as a letter with its action; without content if its image was deleted."""
        letter = DeadLetter(agent, record, None)
        if await self._is_deleted(letter.image_id):
            return DeadLetter(agent, _without_content(record), ERASED)
        return DeadLetter(agent, record, await self._act_of(letter))

    async def _act_of(self, letter: DeadLetter) -> str | None:
        try:
            return str(json.loads(await self._files.get(_mark_key(letter))).get("act"))
        except ObjectMissing:
            return None

    async def erase(self, image_ids: Collection[str], agents: Iterable[str] = GIVES_UP) -> Counter[str]:
        """Mark the letters of these deleted images as erased; return how many each image has, new or marked before."""
        found: Counter[str] = Counter()
        for agent in agents:
            marks = await self._marks(agent)
            for record in await asyncio.to_thread(read_topic, self._kafka, dead_topic(agent)):
                letter = DeadLetter(agent, record, None)
                if letter.image_id not in image_ids:
                    continue
                found[letter.image_id] += 1
                if letter.id not in marks:
                    await self._mark(letter, ERASED)
        return found

    async def _marks(self, agent: str) -> dict[str, str]:
        return {
            found.key.rsplit("/", 1)[-1].removesuffix(".json"): found.key
            async for found in self._files.list(f"dead-letters/{agent}/")
        }

    async def _is_deleted(self, image_id: str) -> bool:
        return bool(_ID.match(image_id)) and await Tombstones(self._files).get(image_id) is not None

    async def replay(
        self,
        agent: str,
        selection: Selection,
        *,
        dry_run: bool = True,
        per_second: float = 20.0,
        seen: Callable[[DeadLetter, str], None] = lambda _letter, _act: None,
    ) -> int:
        """Replay open letters, oldest first, rate-limited; return how many.

        Calls `seen` with each letter and "would-replay", "replayed" or "replay-limit".
        """
        count = 0
        async for letter in self.letters(agent, selection):
            act = await self.replay_one(letter, dry_run=dry_run)
            seen(letter, act)
            if act == REPLAY_LIMIT_REACHED:
                continue
            count += 1
            if not dry_run:
                await asyncio.sleep(1 / per_second)
        return count

    async def replay_one(self, letter: DeadLetter, *, dry_run: bool = True) -> str:
        """Send an open letter to the agent's retry topic; return the action taken, or with `dry_run` the one due."""
        if letter.replays >= REPLAY_LIMIT:
            return REPLAY_LIMIT_REACHED
        if dry_run:
            return "would-replay"
        await self._deliverer.deliver([replay_of(letter.record, letter.agent, f"{letter.agent}/{letter.id}")])
        await self._mark(letter, "replayed")
        return "replayed"

    async def discard(
        self,
        agent: str,
        selection: Selection,
        *,
        reason: str,
        dry_run: bool = True,
        seen: Callable[[DeadLetter, str], None] = lambda _letter, _act: None,
    ) -> int:
        """Discard open letters, with an audit record each; return how many."""
        count = 0
        async for letter in self.letters(agent, selection):
            count += 1
            seen(letter, await self.discard_one(letter, reason=reason, dry_run=dry_run))
        return count

    async def discard_one(self, letter: DeadLetter, *, reason: str, dry_run: bool = True) -> str:
        """Discard an open letter; return the action taken, or with `dry_run` the one due."""
        if dry_run:
            return "would-discard"
        await self._mark(letter, "discarded", reason=reason)
        return "discarded"

    async def _mark(self, letter: DeadLetter, act: str, *, reason: str = "") -> None:
        body = {"act": act, "at": now(), "reason": reason, "code": letter.code, "image_id": letter.image_id}
        await self._files.put(_mark_key(letter), json.dumps(body).encode(), content_type="application/json")


def _mark_key(letter: DeadLetter) -> str:
    return f"dead-letters/{letter.agent}/{letter.id}.json"


def _without_content(record: Record) -> Record:
    kept = tuple((name, value) for name, value in record.headers if name in _WITHOUT_CONTENT)
    return Record(record.topic, record.partition, record.offset, None, None, kept, record.timestamp_ms)
