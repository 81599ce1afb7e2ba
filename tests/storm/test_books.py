"""The checks: a violation in fabricated evidence is reported under its guarantee."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.values import ErrorCode, new_image_id
from tests.storm.books import balance
from tests.storm.evidence import CommitSample, Evidence, Position, RecordedOutcome
from tests.storm.uploads import Sent

GOOD, BAD, LOST, GONE, FAILED = (new_image_id() for _ in range(5))
SHA = "a" * 64


def sent(number: int, image_id: str | None, **changes: object) -> Sent:
    """Return an upload, accepted if it has an image id."""
    status = 202 if image_id else 503
    found = Sent(number, "upload", "cat", good=True, sha256=SHA, at=100.0, status=status, image_id=image_id)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def balanced() -> Evidence:
    """Return the evidence of a correct run: completed, rejected, refused and deleted images."""
    return Evidence(
        sent=[sent(1, GOOD), sent(2, BAD, good=False, content="bomb"), sent(3, None), sent(4, GONE, deleted="yes")],
        number_of={GOOD: 1, BAD: 2, GONE: 4},
        states={GOOD: "completed", BAD: "rejected", GONE: "gone"},
        outcomes=[
            RecordedOutcome(GOOD, 1, "o1", "completed"),
            RecordedOutcome(GOOD, 1, "o1", "completed"),
            RecordedOutcome(BAD, 1, "o2", "rejected"),
            RecordedOutcome(GONE, 2, "o3", "deleted"),
        ],
        keys={
            f"images/{GOOD[-2:]}/{GOOD}/1/master.jpg",
            f"originals/default/aa/{SHA}",
            f"claims/default/{SHA}/{GOOD}",
            f"results/default/{SHA}/sanitizer/1/abc.json",
            f"jobs/{GOOD}.1.json",
        },
        receipts={f"{GOOD}.1": 1},
        hashes={GOOD: {SHA}},
        outputs={GOOD: {"master.jpg": "m", "ocr": "t"}},
        calm={"cat": {"master.jpg": "m", "ocr": "t"}},
        refusals={BAD: ("corrupt-image", 101.0)},
        replayed={GOOD: "completed"},
        poison=[("ocr", b"x", True)],
        positions=[Position("image.uploaded", 0, 7, GOOD)],
        follow_ups={("sanitizer", GOOD): 110.0},
        commits=[CommitSample(111.0, {("sanitizer", "image.uploaded", 0): 8})],
        uncommitted={"sanitizer image.uploaded/0": 0},
        memory={"core": (1, 2)},
        left={"processes": []},
        faults=[("kill core", "")],
    )


def lose(found: Evidence) -> None:
    """Accept an upload without any outcome."""
    found.sent.append(sent(5, LOST))


def leave_a_trace(found: Evidence) -> None:
    """Keep a receipt of the rejected upload."""
    found.receipts[f"{LOST}.1"] = 3


def leave_a_record(found: Evidence) -> None:
    """Process the rejected upload."""
    found.number_of[LOST] = 3
    found.states[LOST] = "processing"


def leave_half(found: Evidence) -> None:
    """Start processing an unanswered upload without an outcome."""
    found.sent.append(sent(5, None, status=None))
    found.number_of[LOST] = 5
    found.states[LOST] = "processing"


def end_twice(found: Evidence) -> None:
    """Emit two outcomes of one generation."""
    found.outcomes.append(RecordedOutcome(GOOD, 1, "o9", "failed"))


def repeat_under_another_id(found: Evidence) -> None:
    """Emit the same outcome under another id, which defeats de-duplication."""
    found.outcomes.append(RecordedOutcome(GOOD, 1, "o9", "completed"))


def orphan(found: Evidence) -> None:
    """Leave an object of the deleted image."""
    found.keys.add(f"images/{GONE[-2:]}/{GONE}/1/master.jpg")


def orphan_original(found: Evidence) -> None:
    """Leave an original without an image."""
    found.keys.add(f"originals/default/bb/{'b' * 64}")


def compute_again(found: Evidence) -> None:
    """Store the result of equal work under a second key."""
    found.keys.add(f"results/default/{SHA}/sanitizer/1/def.json")


def lack_a_result(found: Evidence) -> None:
    """Remove the OCR result of a completed image."""
    del found.outputs[GOOD]["ocr"]


def change_a_byte(found: Evidence) -> None:
    """Store a master that differs from the run without faults."""
    found.outputs[GOOD]["master.jpg"] = "n"


def refuse_a_good_one(found: Evidence) -> None:
    """Reject a valid image."""
    found.sent[1].good = True


def fail_for_no_reason(found: Evidence) -> None:
    """Fail an image without a dead letter."""
    found.sent.append(sent(5, FAILED))
    found.states[FAILED] = "failed"
    found.outcomes.append(RecordedOutcome(FAILED, 1, "o5", "failed"))


def fail_for_good(found: Evidence) -> None:
    """Fail an image again after the replay of its dead letters."""
    found.replayed[GOOD] = "failed"


def lose_poison(found: Evidence) -> None:
    """Dead-letter no malformed event."""
    found.poison.append(("resizer", b"y", False))


def show_a_deleted_one(found: Evidence) -> None:
    """Show an image after its deletion was accepted."""
    found.sent[3].seen_after = "200 after its deletion was accepted"


def commit_too_early(found: Evidence) -> None:
    """Commit an event before its fact is in the log."""
    found.commits.insert(0, CommitSample(105.0, {("sanitizer", "image.uploaded", 0): 8}))


def leave_work(found: Evidence) -> None:
    """Leave an event uncommitted at the end."""
    found.uncommitted["sanitizer image.uploaded/0"] = 1


def eat_memory(found: Evidence) -> None:
    """Exceed a memory limit."""
    found.memory["core"] = (3, 2)


def leave_a_process(found: Evidence) -> None:
    """Leave a process running."""
    found.left["processes"] = ["4711 sanitizer"]


def miss_a_fault(found: Evidence) -> None:
    """Plan a fault that was not injected."""
    found.faults.append(("kill ocr", "never reached before-work"))


BREAKS: list[tuple[Callable[[Evidence], None], str]] = [
    (lose, "every accepted upload ends once"),
    (leave_a_trace, "a rejected upload leaves no trace"),
    (leave_a_record, "a rejected upload leaves no trace"),
    (leave_half, "an unanswered upload is complete or absent"),
    (end_twice, "one outcome per image and generation"),
    (repeat_under_another_id, "one outcome per image and generation"),
    (orphan, "every object belongs to an image"),
    (orphan_original, "every object belongs to an image"),
    (compute_again, "equal work is done once"),
    (lack_a_result, "every required result exists"),
    (change_a_byte, "outputs are those of a calm run"),
    (refuse_a_good_one, "good images complete, bad ones are rejected"),
    (fail_for_no_reason, "good images complete, bad ones are rejected"),
    (fail_for_good, "failed images complete when replayed"),
    (lose_poison, "malformed events are dead-lettered"),
    (show_a_deleted_one, "nothing older than the newest generation is visible"),
    (commit_too_early, "offsets are committed after the work"),
    (leave_work, "all work is done and committed"),
    (eat_memory, "memory stays bounded"),
    (leave_a_process, "nothing is left behind"),
    (miss_a_fault, "every planned fault struck"),
]


def test_a_correct_run_has_no_violations() -> None:
    """For a correct run every guarantee is checked on some item, and none is violated."""
    promises = balance(balanced())
    assert [promise.name for promise in promises if not promise.kept] == []
    unchecked = {promise.name for promise in promises if promise.checked == 0}
    assert unchecked == {"an unanswered upload is complete or absent"}, "this run has no unanswered upload"


@pytest.mark.parametrize(("break_it", "promise"), BREAKS, ids=lambda given: getattr(given, "__name__", None))
def test_a_violation_is_reported(break_it: Callable[[Evidence], None], promise: str) -> None:
    """A violation is reported under its guarantee, with the item, and under no other."""
    evidence = balanced()
    break_it(evidence)
    violated = [found for found in balance(evidence) if not found.kept]
    assert [found.name for found in violated] == [promise]
    assert violated[0].broken == len(violated[0].offenders) == 1


def test_one_failed_child_excuses_one_image() -> None:
    """One image may be rejected for an injected child failure; a second one may not."""
    evidence = balanced()
    evidence.sent[1].good = True
    evidence.refusals[BAD] = (ErrorCode.DECODE_TIMEOUT, 103.0)
    evidence.child_deaths = [(100.0, ErrorCode.DECODE_TIMEOUT)]
    assert all(promise.kept for promise in balance(evidence))
    evidence.sent.append(sent(5, LOST))
    evidence.states[LOST] = "rejected"
    evidence.outcomes.append(RecordedOutcome(LOST, 1, "o5", "rejected"))
    evidence.refusals[LOST] = (ErrorCode.DECODE_TIMEOUT, 103.5)
    assert [promise.name for promise in balance(evidence) if not promise.kept] == [
        "good images complete, bad ones are rejected"
    ]


def test_a_replayed_image_may_have_two_outcomes() -> None:
    """A failed image with a dead letter may complete after a replay, with a second outcome."""
    evidence = balanced()
    evidence.outcomes.append(RecordedOutcome(GOOD, 1, "o0", "failed"))
    evidence.dead_letters[GOOD] = {"worker-crashed"}
    assert all(promise.kept for promise in balance(evidence))
