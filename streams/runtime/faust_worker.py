"""The Faust adapter: group membership, fetching, the stream. The only module that imports Faust.

Faust is not the reliability layer: it acks an event whose agent raised, commits past running work, and hides failed
sends. So its agent is one loop over `stream.noack().events()` that passes each event to the intake and never raises;
topics are raw bytes; the offset ledger acks in order; outputs use a separate producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faust
import structlog
from aiokafka import TopicPartition
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from faust.contrib.asgi import bind_to_running_loop
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP

from schemas.events.envelope import Record
from streams.errors import DependencyUnavailable, NotReady
from streams.kafka.security import aiokafka_arguments
from streams.kafka.transaction_markers import trailing_markers
from streams.runtime.eager_wait import EagerWaits
from streams.runtime.record_intake import Intake
from streams.settings import BreakerSettings, KafkaSettings, RetrySettings, WorkerSettings
from streams.stage import StageSettings
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition, HealthBoard
from streams.topics import Topic, retry_topic

FAUST_VERSION = "0.15.3"
LONGEST_POLL_INTERVAL_S = 3600.0
MARKERS_INTERVAL_S = 5.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a worker consumes, under which group, and the bounds that set its poll interval."""

    stage: str
    topics: tuple[Topic, ...]
    buffer: int  # events fetched ahead
    slowest_s: float  # the longest one event may take, all tries in place
    parallel: int  # events processed concurrently
    gated_s: float = 0.0  # the longest one event may take that waits at the gate and then fails at once

    @classmethod
    def of(
        cls,
        stage: str,
        topics: tuple[Topic, ...],
        settings: StageSettings,
        retry: RetrySettings,
        breaker: BreakerSettings,
    ) -> Subscription:
        """Derive it from the settings: the last try may start just before `in_place_total_s` has passed."""
        slowest_s = settings.deadline_s + retry.in_place_total_s
        return cls(
            stage, topics, settings.buffer, slowest_s, settings.in_flight, breaker.gate_s + retry.in_place_total_s
        )


def check_faust() -> None:
    """Raise NotReady unless the installed Faust is the version whose acks were verified."""
    found = version("faust-streaming")
    if found != FAUST_VERSION:
        raise NotReady(f"faust-streaming {found} is installed; the acks were verified with {FAUST_VERSION} only")
    try:
        import faust._cython.streams  # noqa: F401, PLC0415 - imported to check that it exists
    except ImportError as error:
        raise NotReady(
            "faust-streaming is installed without its Cython loop, whose Python twin acks events of an old "
            "assignment; install the wheel"
        ) from error


def poll_interval_s(subscription: Subscription, settings: WorkerSettings) -> float:
    """Return a max.poll.interval under which a healthy worker is never removed from its group. Raises NotReady.

    At least 2 x (buffer + max poll records) x slowest event / parallel events, where both terms equal the buffer.
    While a breaker is open, the slowest event is one that waits at the gate for the whole of `gate_s`: its calls then
    fail at once. Events in flight wait concurrently, and an event that both waits and works does so once; the factor
    of two covers that. The watchdog detects a stuck worker, so a long interval costs nothing. Above an hour the
    settings are rejected: one partition's backlog could delay a rebalance by that long.
    """
    slowest_s = max(subscription.slowest_s, subscription.gated_s)
    needed = 2 * 2 * subscription.buffer * slowest_s / subscription.parallel
    if needed > LONGEST_POLL_INTERVAL_S:
        raise NotReady(
            f"{subscription.stage}: {subscription.buffer} events fetched ahead of up to {slowest_s:.0f} s "
            f"each, {subscription.parallel} at once, could take {needed:.0f} s between polls. "
            f"Lower DARKROOM_{subscription.stage.upper()}__BUFFER or DARKROOM_{subscription.stage.upper()}__DEADLINE_S."
        )
    return max(settings.max_poll_interval_s, needed)


def broker_credentials(kafka: KafkaSettings) -> Any:
    """Return Faust's form of the security settings of its consumer and producer; None for plaintext. Raises NotReady.

    Faust chooses TLS by the presence of a context.
    """
    arguments = aiokafka_arguments(kafka)
    context = arguments.get("ssl_context")
    if "sasl_oauth_token_provider" in arguments:
        return OAuthCredentials(oauth_cb=arguments["sasl_oauth_token_provider"], ssl_context=context)
    if "sasl_mechanism" in arguments:
        return SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=arguments["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


class _Consumer(EagerWaits, Consumer):  # type: ignore[misc] # Faust is untyped
    """Faust's consumer."""


class FaustWorker:
    """One consumer of one stage's topics."""

    def __init__(
        self,
        subscription: Subscription,
        intake: Intake,
        *,
        kafka: KafkaSettings,
        worker: WorkerSettings,
        health: HealthBoard,
        before_commit: Callable[[Record], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_faust()
        self._subscription = subscription
        self._intake = intake
        self._kafka = kafka
        self._worker = worker
        self._health = health
        self._before_commit = before_commit
        self._parked = asyncio.Event()
        self._clock = clock
        self._last_event = clock()
        self._lagging_since: float | None = None  # first check that found lag, after the last progress
        self._marker_task: asyncio.Task[None] | None = None
        self.app = self._build()

    async def start(self) -> None:
        """Join the group; returns when the consumer runs. Raises when Kafka is unavailable."""
        logging.getLogger("faust").setLevel(logging.WARNING)
        self._health.say("kafka", Condition.UNREADY, "joining the consumer group")
        bind_to_running_loop(self.app)
        self.app.finalize()
        await self.app.maybe_start()
        self._marker_task = asyncio.create_task(self._pass_transaction_markers(), name="pass-transaction-markers")

    async def until_stopped(self) -> None:
        """Return when Faust has stopped by itself, which is always a failure."""
        await self.app.wait_until_stopped()

    async def stop(self) -> bool:
        """Stop the intake, finish events in flight, commit, leave the group. False on timeout."""
        if self._marker_task is not None:
            self._marker_task.cancel()
        drained = await self._intake.drain(self._worker.drain_s)
        # Every finished event is acked by now; Faust must not wait for the unfinished ones.
        self.app.conf.stream_wait_empty = False
        try:
            async with asyncio.timeout(10):
                with contextlib.suppress(Exception):
                    await self.app.consumer.commit()
                await self.app.stop()
        except TimeoutError:
            log.warning("Faust did not stop in time; leaving the group by timeout")
        return drained

    def lag(self) -> dict[tuple[str, int], int]:
        """Return the uncommitted events per partition this worker owns, and set the metric."""
        found = self._uncommitted()
        for (topic, partition), events in found.items():
            metrics.LAG.labels(self._subscription.stage, topic, str(partition)).set(events)
        return found

    def stuck(self) -> str | None:
        """Return a problem for the watchdog: lag for `stuck_fetch_s`, in which no event was fetched or in flight.

        Measured from the first call that found lag, since the last event may be older than the lag: an idle topic.
        """
        lag = 0
        if not self._intake.runner.in_flight() and not self.app.rebalancing:
            with contextlib.suppress(Exception):  # the consumer is starting or stopping; the loop check covers a hang
                lag = sum(self._uncommitted().values())
        since = self._lagging_since
        if lag == 0 or since is None or since < self._last_event:
            self._lagging_since = self._clock() if lag else None
            return None
        stuck_s = self._clock() - since
        if stuck_s < self._worker.stuck_fetch_s:
            return None
        return f"lag of {lag} events, but none fetched for {stuck_s:.0f} s"

    def _uncommitted(self) -> dict[tuple[str, int], int]:
        consumer = self.app.consumer
        found: dict[tuple[str, int], int] = {}
        for place in consumer.assignment():
            end = consumer.highwater(place)
            if end is not None:
                found[self._kafka.logical(place.topic), place.partition] = max(0, end - self._finished(place))
        return found

    def _finished(self, place: Any) -> int:
        """Return a partition's committed offset, or its read offset before the first commit."""
        consumer = self.app.consumer
        committed = consumer._committed_offset.get(place)
        return int(committed if committed is not None else (consumer._read_offset.get(place) or 0))

    async def _pass_transaction_markers(self) -> None:
        """Commit past transaction control records, which have offsets but are never delivered.

        Otherwise lag would never reach zero. Only while idle: nothing in flight, no event for `MARKERS_INTERVAL_S`.
        """
        while True:
            await asyncio.sleep(MARKERS_INTERVAL_S)
            quiet = self._clock() - self._last_event > MARKERS_INTERVAL_S
            if not quiet or self._intake.runner.in_flight() or self.app.rebalancing:
                continue
            try:
                await self._pass_trailing_markers()
            except DependencyUnavailable as error:
                log.warning("cannot read behind the last event", error=str(error))
            except Exception as error:  # the consumer is starting or stopping
                log.debug("transaction markers not checked", error=repr(error))

    async def _pass_trailing_markers(self) -> None:
        consumer = self.app.consumer
        generation = self.app.consumer_generation_id
        behind = {
            TopicPartition(place.topic, place.partition): self._finished(place)
            for place in consumer.assignment()
            if (consumer.highwater(place) or 0) > self._finished(place)
        }
        if not behind:
            return
        ends = await trailing_markers(self._kafka, behind)
        if ends and generation == self.app.consumer_generation_id and not self.app.rebalancing:
            log.info("committing past transaction markers", partitions=len(ends))
            await consumer._commit_offsets({TP(place.topic, place.partition): end for place, end in ends.items()})

    def _build(self) -> Any:
        kafka, worker, subscription = self._kafka, self._worker, self._subscription
        group = kafka.group(subscription.stage)
        app = faust.App(
            group,
            broker=[f"kafka://{address.strip()}" for address in kafka.bootstrap.split(",")],
            broker_credentials=broker_credentials(kafka),
            autodiscover=False,
            web_enabled=False,
            store="memory://",
            datadir=Path(tempfile.gettempdir()) / "darkroom-faust",  # required by Faust; stays empty without tables
            stream_buffer_maxsize=subscription.buffer,
            stream_wait_empty=True,
            stream_publish_on_commit=False,
            broker_max_poll_records=subscription.buffer,
            broker_max_poll_interval=poll_interval_s(subscription, worker),
            broker_session_timeout=worker.session_timeout_s,
            broker_heartbeat_interval=min(3.0, worker.session_timeout_s / 3),
            broker_request_timeout=max(60.0, worker.session_timeout_s + 5),
            broker_rebalance_timeout=worker.rebalance_timeout_s,
            broker_commit_interval=worker.commit_interval_s,
            broker_commit_every=100,
            consumer_max_fetch_size=1_048_576,
            consumer_auto_offset_reset="earliest",
            processing_guarantee="at_least_once",
            table_standby_replicas=0,
            topic_disable_leader=True,
            topic_allow_declare=False,
            producer_acks=-1,
        )
        app.transport.Consumer = _Consumer
        names = [kafka.topic(topic.name) for topic in subscription.topics]
        channel = app.topic(
            *names,
            kafka.topic(retry_topic(subscription.stage)),
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        app.agent(channel, name=f"{group}.loop")(self._loop)
        app.on_partitions_assigned.connect(self._assigned)
        app.on_partitions_revoked.connect(self._revoked)
        return app

    async def _loop(self, stream: Any) -> None:
        async for event in stream.noack().events():
            self._last_event = self._clock()
            if not await self._take(stream, event):
                # Closing: leave the event unacked and fetch no other.
                await self._parked.wait()

    async def _take(self, stream: Any, event: Any) -> bool:
        message = event.message
        record = Record(
            self._kafka.logical(message.topic),
            message.partition,
            message.offset,
            message.key,
            message.value,
            tuple(_headers(message.headers)),
            int((message.timestamp or 0) * 1000),
        )
        generation = message.generation_id

        async def ack() -> None:
            if self._before_commit is not None:
                await self._before_commit(record)
            if generation == self.app.consumer_generation_id:
                await stream.ack(event)

        taken = await self._intake.take(record, generation, ack)
        return taken or not self._intake.closed

    async def _assigned(self, _app: Any, assigned: Any, **_kwargs: Any) -> None:
        self._last_event = self._clock()
        self._health.say("kafka", Condition.OK, f"{len(assigned)} partitions")
        log.info("partitions assigned", stage=self._subscription.stage, partitions=len(assigned))

    async def _revoked(self, _app: Any, revoked: Any, **_kwargs: Any) -> None:
        for place in revoked:
            self._intake.revoke(self._kafka.logical(place.topic), place.partition)
            with contextlib.suppress(KeyError):
                metrics.LAG.remove(self._subscription.stage, self._kafka.logical(place.topic), str(place.partition))


def _headers(headers: Any) -> list[tuple[str, bytes]]:
    pairs = headers.items() if hasattr(headers, "items") else headers or ()
    return [(name, value if value is not None else b"") for name, value in pairs]
