"""The report of a run, as text tables and as JSON."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.storm.books import Promise
from tests.storm.evidence import Evidence
from tests.storm.schedule import Planned

Say = Callable[[str], None]

_HEALED = {  # recovery counts from their healing; for other faults, from the injection
    "zombie", "rebalance-storm", "leader-killed", "brokers-down", "produce-fails", "dead-letters-rejected",
    "slow-events", "store-down", "store-killed", "store-slow", "store-errors", "store-resets", "store-full",
    "read-model-down", "read-model-slow", "read-model-errors",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recovery:
    """A fault, and the time from its end until an image sent then completed."""

    fault: Planned
    seconds: float | None  # None: the image did not complete
    why_not: str = ""  # "" if the fault was injected


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the fault suite."""

    seed: int
    minutes: float
    evidence: Evidence
    promises: Sequence[Promise]
    recoveries: Sequence[Recovery]

    @property
    def kept(self) -> bool:
        """Whether every guarantee held."""
        return all(promise.kept for promise in self.promises)


def promises_table(promises: Sequence[Promise]) -> str:
    """Return one line per guarantee, and the first violations of each."""
    width = max(len(promise.name) for promise in promises)
    lines = [f"{'guarantee':<{width}}  {'checked':>8}  {'broken':>6}"]
    for promise in promises:
        lines.append(f"{promise.name:<{width}}  {promise.checked:>8}  {promise.broken:>6}")
        lines += [f"    {offender}" for offender in promise.offenders]
    return "\n".join(lines)


def recovery_times(recoveries: Sequence[Recovery]) -> dict[str, list[float]]:
    """Return the recovery times in seconds by kind of fault."""
    found: dict[str, list[float]] = defaultdict(list)
    for recovery in recoveries:
        if recovery.seconds is not None:
            found[recovery.fault.kind].append(round(recovery.seconds, 1))
    return dict(sorted(found.items()))


def recovery_table(recoveries: Sequence[Recovery]) -> str:
    """Return one line per kind of fault: count, and minimum, median and maximum recovery time."""
    lines = [f"{'fault':<20}  {'times':>5}  {'counted from':<12}  {'min s':>6}  {'median s':>8}  {'max s':>6}"]
    for kind, seconds in recovery_times(recoveries).items():
        begin = "healing" if kind in _HEALED else "injection"
        middle = statistics.median(seconds)
        lines.append(
            f"{kind:<20}  {len(seconds):>5}  {begin:<12}  {min(seconds):>6.1f}  {middle:>8.1f}  {max(seconds):>6.1f}"
        )
    return "\n".join(lines)


def stream_table(evidence: Evidence) -> str:
    """Return the counts of uploads, responses and final states."""
    answers: dict[str, int] = defaultdict(int)
    for sent in evidence.sent:
        answers["no answer" if sent.status is None else str(sent.status)] += 1
    ends: dict[str, int] = defaultdict(int)
    for state in evidence.states.values():
        ends[state] += 1
    responses = ", ".join(f"{count} x {answer}" for answer, count in sorted(answers.items()))
    ended = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
    return f"{len(evidence.sent)} sent: {responses}\n{len(evidence.states)} images: {ended}"


def whole(run: Run) -> str:
    """Return the whole report as text."""
    parts = [
        f"seed {run.seed}, {run.minutes:.1f} minutes, {len(run.recoveries)} faults",
        stream_table(run.evidence),
        promises_table(run.promises),
        recovery_table(run.recoveries),
        "every guarantee held" if run.kept else "BROKEN: " + "; ".join(p.name for p in run.promises if not p.kept),
    ]
    return "\n\n".join(parts)


def save(run: Run, file: Path) -> None:
    """Write the report as JSON."""
    found = {
        "seed": run.seed,
        "minutes": round(run.minutes, 1),
        "sent": len(run.evidence.sent),
        "images": len(run.evidence.states),
        "faults": [
            {**asdict(recovery.fault), "recovered_s": recovery.seconds, "why_not": recovery.why_not}
            for recovery in run.recoveries
        ],
        "promises": [asdict(promise) for promise in run.promises],
        "recovery_s": recovery_times(run.recoveries),
        "memory_mb": {name: round(peak / 1e6) for name, (peak, _) in run.evidence.memory.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1))
