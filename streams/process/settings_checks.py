"""Rejects settings that are each valid but unsafe together, at start, with all the variables to change."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from streams.errors import NotReady
from streams.kafka import security as kafka_security
from streams.read_model import security as qdrant_security
from streams.settings import ModelsSettings, QdrantSettings, Settings
from streams.stage import StageSettings
from streams.topics import DELAY_TIERS


def check_safe(settings: Settings, agent: str = "", own: StageSettings | None = None) -> None:
    """Raise NotReady, naming all problems, for settings under which events could be lost or retried endlessly."""
    problems = [*_kafka(settings), *_qdrant(settings.qdrant), *_worker(settings), *_waiting(settings)]
    if own is not None:
        problems += _stage(settings, agent, own)
    if problems:
        raise NotReady("unsafe settings: " + "; ".join(problems))


def check_one_clip(models: ModelsSettings, group: str, own: BaseModel) -> None:
    """Raise NotReady if a former setting of one component names another CLIP than the one that all components use.

    Vectors of different models are not comparable: images indexed with one are not found with the other.
    """
    problems = [
        f"DARKROOM_{group}__{former.upper()} ({getattr(own, former)}) was replaced by "
        f"DARKROOM_MODELS__{current.upper()} ({getattr(models, current) or 'empty'}), which the embedder, search and "
        "feature extraction share: set that one instead"
        for former, current in (("weights", "clip_weights"), ("architecture", "clip_architecture"))
        if former in own.model_fields_set and getattr(own, former) not in (None, getattr(models, current))
    ]
    if problems:
        raise NotReady("unsafe settings: " + "; ".join(problems))


def _kafka(settings: Settings) -> Iterator[str]:
    kafka = settings.kafka
    yield from kafka_security.security_problems(kafka)
    if kafka.min_insync > kafka.replication:
        # No write could ever be confirmed.
        yield (
            f"DARKROOM_KAFKA__MIN_INSYNC ({kafka.min_insync}) is more than DARKROOM_KAFKA__REPLICATION "
            f"({kafka.replication})"
        )
    if kafka.replication >= 3 and kafka.min_insync < 2:
        # A confirmed event could be on one broker only and be lost with it, although three copies are configured.
        yield f"DARKROOM_KAFKA__REPLICATION {kafka.replication} needs DARKROOM_KAFKA__MIN_INSYNC of 2 or more"


def _qdrant(qdrant: QdrantSettings) -> Iterator[str]:
    yield from qdrant_security.security_problems(qdrant)
    if qdrant.replicas is not None and (qdrant.write_consistency or 1) > qdrant.replicas:
        # No write could ever be confirmed by so many copies.
        yield (
            f"DARKROOM_QDRANT__WRITE_CONSISTENCY ({qdrant.write_consistency}) is more than DARKROOM_QDRANT__REPLICAS "
            f"({qdrant.replicas})"
        )


def _worker(settings: Settings) -> Iterator[str]:
    worker, retry = settings.worker, settings.retry
    if worker.session_timeout_s > worker.rebalance_timeout_s:
        # A rebalance could complete without a member whose session is still valid and whose work still runs.
        yield (
            f"DARKROOM_WORKER__SESSION_TIMEOUT_S ({worker.session_timeout_s:g}) is more than "
            f"DARKROOM_WORKER__REBALANCE_TIMEOUT_S ({worker.rebalance_timeout_s:g})"
        )
    if worker.drain_s >= worker.rebalance_timeout_s:
        # A rebalance during a drain would remove the worker before it commits its finished events.
        yield (
            f"DARKROOM_WORKER__DRAIN_S ({worker.drain_s:g}) is not below DARKROOM_WORKER__REBALANCE_TIMEOUT_S "
            f"({worker.rebalance_timeout_s:g})"
        )
    if worker.commit_interval_s >= worker.session_timeout_s:
        # Each takeover would repeat more work than Kafka takes to detect that a worker crashed.
        yield (
            f"DARKROOM_WORKER__COMMIT_INTERVAL_S ({worker.commit_interval_s:g}) is not below "
            f"DARKROOM_WORKER__SESSION_TIMEOUT_S ({worker.session_timeout_s:g})"
        )
    if worker.loop_lag_s >= worker.rebalance_timeout_s:
        # A blocked event loop answers no rebalance, so it must exit before the rebalance times out.
        yield (
            f"DARKROOM_WORKER__LOOP_LAG_S ({worker.loop_lag_s:g}) is not below "
            f"DARKROOM_WORKER__REBALANCE_TIMEOUT_S ({worker.rebalance_timeout_s:g})"
        )
    if worker.loop_lag_s < 1:
        # The watchdog checks once a second: an ordinary pause would end the process again and again.
        yield f"DARKROOM_WORKER__LOOP_LAG_S ({worker.loop_lag_s:g}) is below 1"
    if worker.control_interval_s > worker.drain_s:
        # An agent must not take longer to notice that it is paused or resumed than to stop.
        yield (
            f"DARKROOM_WORKER__CONTROL_INTERVAL_S ({worker.control_interval_s:g}) is more than "
            f"DARKROOM_WORKER__DRAIN_S ({worker.drain_s:g})"
        )
    if retry.in_place_total_s > worker.drain_s:
        # Retries in place would outlast the drain, so that every deployment would repeat their work.
        yield (
            f"DARKROOM_RETRY__IN_PLACE_TOTAL_S ({retry.in_place_total_s:g}) is more than DARKROOM_WORKER__DRAIN_S "
            f"({worker.drain_s:g})"
        )


def _waiting(settings: Settings) -> Iterator[str]:
    tiers, breaker = settings.retry.tiers, settings.breaker
    if list(tiers) != list(DELAY_TIERS):
        # Delays are topics, and the router consumes only the declared ones: an event in another would never return.
        yield f"DARKROOM_RETRY__TIERS names {', '.join(tiers) or 'nothing'}, the topics are {', '.join(DELAY_TIERS)}"
    if list(tiers.values()) != sorted(tiers.values()) or any(seconds <= 0 for seconds in tiers.values()):
        # A shorter later delay would give a dependency less time to recover, not more.
        yield "DARKROOM_RETRY__TIERS must be above 0 and increase"
    if breaker.gate_s + settings.retry.in_place_total_s >= settings.worker.rebalance_timeout_s:
        # A worker that waits for a dependency keeps its partitions; a rebalance must not remove it because of that.
        yield (
            f"DARKROOM_BREAKER__GATE_S ({breaker.gate_s:g}) and DARKROOM_RETRY__IN_PLACE_TOTAL_S "
            f"({settings.retry.in_place_total_s:g}) together are not below DARKROOM_WORKER__REBALANCE_TIMEOUT_S "
            f"({settings.worker.rebalance_timeout_s:g})"
        )


def _stage(settings: Settings, agent: str, own: StageSettings) -> Iterator[str]:
    for name, timeout_s in (("FILES", settings.files.timeout_s), ("QDRANT", settings.qdrant.timeout_s)):
        if min(timeout_s, settings.breaker.slow_s) > own.deadline_s:
            # A hanging dependency would use up each event's retries and never count as a failure.
            yield (
                f"DARKROOM_{name}__TIMEOUT_S ({timeout_s:g}) and DARKROOM_BREAKER__SLOW_S "
                f"({settings.breaker.slow_s:g}) are both more than DARKROOM_{agent.upper()}__DEADLINE_S "
                f"({own.deadline_s:g})"
            )
