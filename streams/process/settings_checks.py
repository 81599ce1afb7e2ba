"""Settings that are each valid and together unsafe: refused at start, all at once, with the variables to change."""

from __future__ import annotations

from collections.abc import Iterator

from streams.errors import NotReady
from streams.settings import Settings
from streams.stage import StageSettings
from streams.topics import DELAY_TIERS


def check_safe(settings: Settings, agent: str = "", own: StageSettings | None = None) -> None:
    """Refuse settings under which events could be lost, or work could go on for ever. Raises NotReady naming all."""
    problems = [*_kafka(settings), *_worker(settings), *_waiting(settings)]
    if own is not None:
        problems += _stage(settings, agent, own)
    if problems:
        raise NotReady("unsafe settings: " + "; ".join(problems))


def _kafka(settings: Settings) -> Iterator[str]:
    kafka = settings.kafka
    if kafka.min_insync > kafka.replication:
        # No write could ever be confirmed.
        yield (
            f"DARKROOM_KAFKA__MIN_INSYNC ({kafka.min_insync}) is more than DARKROOM_KAFKA__REPLICATION "
            f"({kafka.replication})"
        )
    if kafka.replication >= 3 and kafka.min_insync < 2:
        # A confirmed event may be on one broker only, and is lost with it: three copies would promise more than that.
        yield f"DARKROOM_KAFKA__REPLICATION {kafka.replication} needs DARKROOM_KAFKA__MIN_INSYNC of 2 or more"


def _worker(settings: Settings) -> Iterator[str]:
    worker, retry = settings.worker, settings.retry
    if worker.session_timeout_s > worker.rebalance_timeout_s:
        # The group would go on without a member that it still believes alive, and whose work nobody has stopped.
        yield (
            f"DARKROOM_WORKER__SESSION_TIMEOUT_S ({worker.session_timeout_s:g}) is more than "
            f"DARKROOM_WORKER__REBALANCE_TIMEOUT_S ({worker.rebalance_timeout_s:g})"
        )
    if worker.drain_s >= worker.rebalance_timeout_s:
        # A rebalance while a worker drains would throw it out before it can commit what it finished.
        yield (
            f"DARKROOM_WORKER__DRAIN_S ({worker.drain_s:g}) is not below DARKROOM_WORKER__REBALANCE_TIMEOUT_S "
            f"({worker.rebalance_timeout_s:g})"
        )
    if worker.commit_interval_s >= worker.session_timeout_s:
        # Each takeover would repeat more work than it takes Kafka to notice that a worker died.
        yield (
            f"DARKROOM_WORKER__COMMIT_INTERVAL_S ({worker.commit_interval_s:g}) is not below "
            f"DARKROOM_WORKER__SESSION_TIMEOUT_S ({worker.session_timeout_s:g})"
        )
    if worker.loop_lag_s >= worker.rebalance_timeout_s:
        # A loop that is stuck answers no rebalance: it must be gone before the group gives up on it.
        yield (
            f"DARKROOM_WORKER__LOOP_LAG_S ({worker.loop_lag_s:g}) is not below "
            f"DARKROOM_WORKER__REBALANCE_TIMEOUT_S ({worker.rebalance_timeout_s:g})"
        )
    if worker.loop_lag_s < 1:
        # The watchdog looks once a second: an ordinary pause would end the process, for ever anew.
        yield f"DARKROOM_WORKER__LOOP_LAG_S ({worker.loop_lag_s:g}) is below 1"
    if worker.control_interval_s > worker.drain_s:
        # An agent that is paused, or that a person resumes, must not take longer to see it than to stop.
        yield (
            f"DARKROOM_WORKER__CONTROL_INTERVAL_S ({worker.control_interval_s:g}) is more than "
            f"DARKROOM_WORKER__DRAIN_S ({worker.drain_s:g})"
        )
    if retry.in_place_total_s > worker.drain_s:
        # Tries that are only pauses would outlast the stop: every deployment would repeat their work.
        yield (
            f"DARKROOM_RETRY__IN_PLACE_TOTAL_S ({retry.in_place_total_s:g}) is more than DARKROOM_WORKER__DRAIN_S "
            f"({worker.drain_s:g})"
        )


def _waiting(settings: Settings) -> Iterator[str]:
    tiers, breaker = settings.retry.tiers, settings.breaker
    if list(tiers) != list(DELAY_TIERS):
        # Delays are topics, and the router reads those of the table: an event in another would wait for ever.
        yield f"DARKROOM_RETRY__TIERS names {', '.join(tiers) or 'nothing'}, the topics are {', '.join(DELAY_TIERS)}"
    if list(tiers.values()) != sorted(tiers.values()) or any(seconds <= 0 for seconds in tiers.values()):
        # A later try that comes sooner than the one before gives a dependency less time, not more.
        yield "DARKROOM_RETRY__TIERS must grow from one to the next, and be more than nothing"
    if breaker.gate_s + settings.retry.in_place_total_s >= settings.worker.rebalance_timeout_s:
        # Whoever waits for a dependency still holds its partitions; a rebalance must not throw it out for that.
        yield (
            f"DARKROOM_BREAKER__GATE_S ({breaker.gate_s:g}) and DARKROOM_RETRY__IN_PLACE_TOTAL_S "
            f"({settings.retry.in_place_total_s:g}) together are not below DARKROOM_WORKER__REBALANCE_TIMEOUT_S "
            f"({settings.worker.rebalance_timeout_s:g})"
        )


def _stage(settings: Settings, agent: str, own: StageSettings) -> Iterator[str]:
    for name, timeout_s in (("FILES", settings.files.timeout_s), ("QDRANT", settings.qdrant.timeout_s)):
        if min(timeout_s, settings.breaker.slow_s) > own.deadline_s:
            # A dependency that hangs would cost each event its tries, and never count as one that fails.
            yield (
                f"DARKROOM_{name}__TIMEOUT_S ({timeout_s:g}) and DARKROOM_BREAKER__SLOW_S "
                f"({settings.breaker.slow_s:g}) are both more than DARKROOM_{agent.upper()}__DEADLINE_S "
                f"({own.deadline_s:g})"
            )
