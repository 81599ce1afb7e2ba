"""Checks the guarantees against the evidence of a run. Pure functions.

Each result has the number of checked and broken items, and the first violations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from schemas.values import OPTIONAL_STAGES, ErrorCode, ImageState, job_id_of
from tests.storm.evidence import ABSENT, GONE, Evidence, Position
from tests.storm.uploads import Sent

ENDS = {state.value for state in ImageState} - {ImageState.PROCESSING.value}
_SHOWN = 5
_CHILD_CODES = {ErrorCode.DECODER_CRASHED, ErrorCode.DECODE_TIMEOUT, ErrorCode.DECODE_MEMORY}
_BLAME_S = 40.0  # an image may be rejected for a failed child up to so long after the fault


@dataclass(frozen=True, slots=True)
class Promise:
    """The result of checking one guarantee."""

    name: str
    checked: int
    broken: int
    offenders: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether there was no violation."""
        return self.broken == 0


# A check yields one string per checked item: "" if it is correct, else the violation.
Check = Callable[[Evidence], Iterable[str]]


def balance(evidence: Evidence) -> list[Promise]:
    """Return the result of every check."""
    found = []
    for name, check in GUARANTEES.items():
        results = list(check(evidence))
        wrong = [result for result in results if result]
        found.append(Promise(name, len(results), len(wrong), tuple(wrong[:_SHOWN])))
    return found


def _ends_once(evidence: Evidence) -> Iterator[str]:
    outcomes = _kinds(evidence)
    for sent in evidence.accepted():
        image_id = str(sent.image_id)
        state = evidence.states.get(image_id, ABSENT)
        kinds = outcomes.get(image_id, {})
        newest = kinds.get(max(kinds, default=0), [])
        wanted = {GONE: ImageState.DELETED.value}.get(state, state)
        if state not in {*ENDS, GONE}:
            yield f"{_named(sent)} is {state}"
        elif wanted not in newest:
            yield f"{_named(sent)} is {state}, and its outcomes are {newest or 'none'}"
        else:
            yield ""


def _no_trace(evidence: Evidence) -> Iterator[str]:
    rejected = {sent.number: sent for sent in evidence.sent if sent.status is not None and not sent.accepted}
    traces: dict[int, set[str]] = defaultdict(set)
    for job_id, number in evidence.receipts.items():
        if number in rejected:
            traces[number].add(f"a receipt {job_id}")
    ended = {outcome.image_id for outcome in evidence.outcomes if outcome.kind != ImageState.DELETED}
    for image_id, number in evidence.number_of.items():
        if number in rejected:
            if image_id in ended:
                traces[number].add("an outcome")
            # If Kafka accepted its event after all, the image was deleted: nothing of it is visible or stored.
            if evidence.states.get(image_id, ABSENT) not in {ABSENT, GONE}:
                traces[number].add(f"a record ({evidence.states[image_id]})")
    for number, sent in rejected.items():
        yield f"{_named(sent)} left {', '.join(sorted(traces[number]))}" if number in traces else ""


def _unknown_whole(evidence: Evidence) -> Iterator[str]:
    by_image = evidence.by_image()
    for image_id, sent in by_image.items():
        if sent.status is None:
            state = evidence.states.get(image_id, ABSENT)
            yield "" if state in {*ENDS, GONE, ABSENT} else f"{_named(sent)}, never answered, is {state}"


def _one_outcome(evidence: Evidence) -> Iterator[str]:
    ids: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for outcome in evidence.outcomes:
        ids[outcome.image_id, outcome.generation][outcome.id] = outcome.kind
    for (image_id, generation), found in ids.items():
        kinds = sorted(found.values())
        # A replayed image may have a second outcome after `failed`, and no third.
        replayed = len(kinds) == 2 and ImageState.FAILED in kinds and image_id in evidence.dead_letters
        yield "" if len(kinds) == 1 or replayed else f"{image_id}.{generation} ended as {' and '.join(kinds)}"


def _objects_owned(evidence: Evidence) -> Iterator[str]:
    alive = evidence.alive()
    hashes = {sha for image_id in alive for sha in evidence.hashes.get(image_id, ())}
    for key in sorted(evidence.keys):
        kind, *rest = key.split("/")
        owned = True
        match kind:
            case "images":
                owned = rest[1] in alive and rest[2] == str(_newest(evidence, rest[1]))
            case "originals" | "results":
                owned = (rest[2] if kind == "originals" else rest[1]) in hashes
            case "claims":
                owned = rest[2] in alive
            case "jobs":
                owned = rest[0].partition(".")[0] in alive
        yield "" if owned else f"{key} is orphaned"


def _results_there(evidence: Evidence) -> Iterator[str]:
    for image_id, sent in evidence.by_image().items():
        if evidence.states.get(image_id) == ImageState.COMPLETED:
            absent = evidence.calm.get(sent.content, {}).keys() - evidence.outputs.get(image_id, {}).keys()
            missing = sorted({*evidence.unfinished.get(image_id, ()), *absent})
            yield f"{_named(sent)} completed without {', '.join(missing)}" if missing else ""


def _done_once(evidence: Evidence) -> Iterator[str]:
    stored: dict[str, int] = defaultdict(int)
    for key in evidence.keys:
        if key.startswith("results/"):
            stored[key.rpartition("/")[0]] += 1
    for work, count in stored.items():
        yield "" if count == 1 else f"{work} was computed {count} times"


def _same_bytes(evidence: Evidence) -> Iterator[str]:
    for image_id, sent in evidence.by_image().items():
        if evidence.states.get(image_id) != ImageState.COMPLETED:
            continue
        calm, found = evidence.calm.get(sent.content, {}), evidence.outputs.get(image_id, {})
        differing = sorted(name for name in found if calm.get(name) != found[name])
        yield f"{_named(sent)} differs from the calm run in {', '.join(differing)}" if differing else ""


def _right_ends(evidence: Evidence) -> Iterator[str]:
    blame = list(evidence.child_deaths)
    for image_id, sent in evidence.by_image().items():
        state = evidence.states.get(image_id, ABSENT)
        if state in {GONE, ABSENT, ImageState.DELETED, ImageState.PROCESSING}:
            continue  # other checks cover these states
        if state == ImageState.FAILED:
            yield f"{_named(sent)} failed" + ("" if image_id in evidence.dead_letters else " without a dead letter")
        elif (state == ImageState.COMPLETED) == sent.good or _excused(evidence, image_id, blame):
            yield ""
        else:
            yield f"{_named(sent)} is {state}: {evidence.refusals.get(image_id, ('', 0))[0]}"


def _excused(evidence: Evidence, image_id: str, blame: list[tuple[float, str]]) -> bool:
    """Return whether an image was rejected because of an injected child failure; each failure excuses one image."""
    code, at = evidence.refusals.get(image_id, ("", 0.0))
    for struck in blame:
        if code in _CHILD_CODES and struck[1] == code and struck[0] - 1 <= at <= struck[0] + _BLAME_S:
            blame.remove(struck)
            return True
    return False


def _replayed(evidence: Evidence) -> Iterator[str]:
    for image_id, state in evidence.replayed.items():
        yield "" if state != ImageState.FAILED else f"{image_id} still fails after its dead letters were replayed"


def _poison_kept(evidence: Evidence) -> Iterator[str]:
    for agent, value, found in evidence.poison:
        yield "" if found else f"{value[:40]!r} has no dead letter of {agent}"


def _newest_visible(evidence: Evidence) -> Iterator[str]:
    outcomes = _kinds(evidence)
    for sent in evidence.sent:
        if sent.deleted in {"yes", "unknown"} and sent.image_id:
            state = evidence.states.get(sent.image_id, ABSENT)
            confirmed = ImageState.DELETED in outcomes.get(sent.image_id, {}).get(2, [])
            if sent.seen_after:
                yield f"{_named(sent)}: {sent.seen_after}"
            elif (sent.deleted == "yes" or confirmed) and state not in {GONE, ABSENT, ImageState.DELETED}:
                yield f"{_named(sent)} was deleted and is {state}"
            else:
                yield ""


def _commits_behind_work(evidence: Evidence) -> Iterator[str]:
    # Events of deleted images are dropped without a follow-up, also those of rejected uploads that Kafka accepted.
    deleted = {sent.image_id for sent in evidence.sent if sent.deleted != "no"}
    promised = {sent.image_id for sent in evidence.accepted()}
    deleted |= {name for name, state in evidence.states.items() if state in {GONE, ABSENT} and name not in promised}
    places: dict[tuple[str, int], list[Position]] = defaultdict(list)
    for position in evidence.positions:
        places[position.topic, position.partition].append(position)
    seen: set[tuple[str, Position]] = set()  # positions already judged by the first sample after their commit
    for sample in sorted(evidence.commits, key=lambda sample: sample.at):
        for (agent, topic, partition), offset in sample.offsets.items():
            if agent in OPTIONAL_STAGES:  # no image asks for them, so that no fact follows
                continue
            for position in places.get((topic, partition), ()):
                if position.offset >= offset or (agent, position) in seen:
                    continue
                seen.add((agent, position))
                if position.image_id in deleted:
                    continue
                place = (agent, topic, partition, position.offset)
                signs = [evidence.diverted.get(place), evidence.follow_ups.get((agent, position.image_id or ""))]
                done = any(sign is not None and sign <= sample.at for sign in signs)
                yield "" if done else f"{agent} committed {topic}/{partition}/{position.offset} before it was done"


def _all_committed(evidence: Evidence) -> Iterator[str]:
    for place, count in evidence.uncommitted.items():
        yield f"{place}: {count} left" if count else ""


def _memory_bounded(evidence: Evidence) -> Iterator[str]:
    for name, (peak, limit) in evidence.memory.items():
        yield f"{name} used {peak / 1e6:.0f} MB, more than {limit / 1e6:.0f}" if peak > limit else ""


def _nothing_left(evidence: Evidence) -> Iterator[str]:
    for what, found in evidence.left.items():
        yield f"{what}: {', '.join(found[:_SHOWN])}" if found else ""


def _all_struck(evidence: Evidence) -> Iterator[str]:
    for fault, why_not in evidence.faults:
        yield f"{fault}: {why_not}" if why_not else ""


def _kinds(evidence: Evidence) -> dict[str, dict[int, list[str]]]:
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for outcome in evidence.outcomes:
        if outcome.kind not in found[outcome.image_id][outcome.generation]:
            found[outcome.image_id][outcome.generation].append(outcome.kind)
    return found


def _newest(evidence: Evidence, image_id: str) -> int:
    return max((outcome.generation for outcome in evidence.outcomes if outcome.image_id == image_id), default=1)


def _named(sent: Sent) -> str:
    return f"{sent.how} {sent.number} ({sent.content}, answered {sent.status}) {job_id_of(sent.image_id or '?', 1)}"


GUARANTEES: dict[str, Check] = {
    "every accepted upload ends once": _ends_once,
    "a rejected upload leaves no trace": _no_trace,
    "an unanswered upload is complete or absent": _unknown_whole,
    "one outcome per image and generation": _one_outcome,
    "every object belongs to an image": _objects_owned,
    "every required result exists": _results_there,
    "equal work is done once": _done_once,
    "outputs are those of a calm run": _same_bytes,
    "good images complete, bad ones are rejected": _right_ends,
    "failed images complete when replayed": _replayed,
    "malformed events are dead-lettered": _poison_kept,
    "nothing older than the newest generation is visible": _newest_visible,
    "offsets are committed after the work": _commits_behind_work,
    "all work is done and committed": _all_committed,
    "memory stays bounded": _memory_bounded,
    "nothing is left behind": _nothing_left,
    "every planned fault struck": _all_struck,
}
