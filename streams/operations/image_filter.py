"""Image filters: a query language for operators, parsed into a predicate on one record. Pure.

    state=completed and version.ocr<2 and submitted>=2026-01-01

Terms joined by `and`; all must match. An empty filter selects every image. Values with spaces need double quotes.
Keys: see KEYS.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from schemas.values import ID_PATTERN, REQUIRED_STAGES, ImageState, StageState
from streams.read_model.records import ImageRecord, StageRecord

STAGES = ("fetcher", *REQUIRED_STAGES)
KEYS = {
    "id": "`=` `!=`: the image's id",
    "owner": "`=` `!=`: the owner",
    "bucket": "`=` `!=`: the bucket",
    "state": f"`=` `!=`: {', '.join(s for s in ImageState if s is not ImageState.DELETED)}",
    "label": "`=` `!=`: an object detected (or not) in it",
    "text": "`~`: a part of its text, case-insensitive",
    "submitted": "`<` `<=` `>` `>=`: when it was accepted: a date, or a time with its zone; a date is UTC",
    "stage.NAME": f"`=` `!=`: how a stage ended: {', '.join(s for s in StageState if s is not StageState.PENDING)}; "
    "pending: it has not run",
    "version.NAME": "`=` `!=` `<` `<=` `>` `>=`: the version of the stage that made the result",
}
MAX_CHARACTERS = 2000

Test = Callable[[ImageRecord], bool]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_EQUAL = ("=", "!=")
_WORD = re.compile(r"""(?:[^\s"]|"[^"]*")+""")
_TERM = re.compile(r"""(?P<key>[a-z.]+)(?P<op>!=|<=|>=|=|<|>|~)(?P<value>[^\s"]+|"[^"]*")""")
_NUMBERS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}")
_ID = re.compile(ID_PATTERN)


class WrongFilter(ValueError):
    """A term is invalid; the message names it and what is allowed."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The images that match every term. `state`: the only state they can have, if a term sets one."""

    tests: tuple[Test, ...] = ()
    state: ImageState | None = None

    def matches(self, record: ImageRecord) -> bool:
        """Return whether an image is selected."""
        return all(test(record) for test in self.tests)


def read_selection(text: str) -> Selection:
    """Parse a filter. Raises WrongFilter, and nothing else, naming the first invalid term."""
    if len(text) > MAX_CHARACTERS:
        raise WrongFilter(f"the filter has more than {MAX_CHARACTERS} characters")
    if text.count('"') % 2:
        raise WrongFilter("a double quote is not closed")
    words = _WORD.findall(text)
    terms, joints = words[::2], words[1::2]
    for before, joint in zip(terms, joints, strict=False):
        if joint.lower() != "and":
            raise WrongFilter(
                f"after {before!r}: {joint!r} is not `and`; values with spaces need double quotes, "
                "and operators (= < > ~) have no spaces around them"
            )
    if len(joints) == len(terms) and words:
        raise WrongFilter(f"after {words[-1]!r}: a term is missing")
    states = {term.removeprefix("state=").strip('"') for term in terms if term.startswith("state=")}
    tests = tuple(_test(term) for term in terms)
    return Selection(tests, ImageState(states.pop()) if len(states) == 1 else None)


def _test(term: str) -> Test:
    found = _TERM.fullmatch(term)
    if found is None:
        raise _wrong(term, "is not KEY=VALUE")
    key, op, value = found["key"], found["op"], found["value"].strip('"')
    kind, _, stage = key.partition(".")
    if stage and kind in ("stage", "version"):
        if stage not in STAGES:
            raise _wrong(term, f"there is no stage {stage}; there are {', '.join(STAGES)}")
        return _of_stage(term, kind, stage, op, value)
    makers = {
        "id": _id, "owner": _plain("owner"), "bucket": _plain("bucket"), "state": _state, "label": _label,
        "text": _text, "submitted": _submitted,
    }  # fmt: skip
    if key not in makers:
        raise _wrong(term, f"there is no key {key}; there are {', '.join(KEYS)}")
    return makers[key](term, op, value)


def _wrong(term: str, why: str) -> WrongFilter:
    return WrongFilter(f"{term[:100]!r}: {why}")


def _known(term: str, op: str, allowed: tuple[str, ...]) -> Callable[[Any, Any], bool]:
    if op not in allowed:
        raise _wrong(term, f"takes {' '.join(allowed)}, not {op}")
    return _ORDER[op]


def _plain(name: str) -> Callable[[str, str, str], Test]:
    def make(term: str, op: str, value: str) -> Test:
        compare = _known(term, op, _EQUAL)
        return lambda record: compare(getattr(record, name), value)

    return make


def _id(term: str, op: str, value: str) -> Test:
    compare = _known(term, op, _EQUAL)
    if not _ID.fullmatch(value):
        raise _wrong(term, "is not an image id")
    return lambda record: compare(record.image_id, value)


def _state(term: str, op: str, value: str) -> Test:
    compare = _known(term, op, _EQUAL)
    states = tuple(state.value for state in ImageState if state is not ImageState.DELETED)
    if value not in states:
        raise _wrong(term, f"there is no state {value!r}; there are {', '.join(states)}")
    return lambda record: compare(record.state.value, value)


def _label(term: str, op: str, value: str) -> Test:
    there = _known(term, op, _EQUAL) is operator.eq
    return lambda record: (value.lower() in {label.lower() for label in record.labels}) is there


def _text(term: str, op: str, value: str) -> Test:
    if op != "~" or not value:
        raise _wrong(term, "takes ~ and a part of the text")
    part = value.lower()
    return lambda record: part in (record.text or "").lower()


def _submitted(term: str, op: str, value: str) -> Test:
    compare = _known(term, op, ("<", "<=", ">", ">="))
    when = moment(value)
    if when is None:
        raise _wrong(term, "is no date (2026-01-31) or time (2026-01-31T12:00:00Z)")

    def matches(record: ImageRecord) -> bool:
        submitted = moment(record.submitted_at or "")
        return submitted is not None and compare(submitted, when)

    return matches


def _of_stage(term: str, kind: str, stage: str, op: str, value: str) -> Test:
    if kind == "stage":
        compare = _known(term, op, _EQUAL)
        states = tuple(state.value for state in StageState)
        if value not in states:
            raise _wrong(term, f"there is no stage state {value!r}; there are {', '.join(states)}")
        if value == StageState.PENDING:
            return lambda record: (stage not in record.stages) is (compare is operator.eq)
        return lambda record: _stage_matches(record, stage, lambda known: compare(known.state.value, value))
    compare = _known(term, op, tuple(_ORDER))
    if op in _EQUAL:
        return lambda record: _stage_matches(record, stage, lambda known: compare(known.version, value))
    wanted = _numbers(value)
    if wanted is None:
        raise _wrong(term, "only versions made of numbers (2, 1.10) can be compared; use = or != for others")

    def matches(known: StageRecord) -> bool:
        version = _numbers(known.version)
        return version is not None and compare(version, wanted)

    return lambda record: _stage_matches(record, stage, matches)


def _stage_matches(record: ImageRecord, stage: str, test: Callable[[StageRecord], bool]) -> bool:
    known = record.stages.get(stage)
    return known is not None and test(known)


def _numbers(version: str) -> tuple[int, ...] | None:
    return tuple(int(part) for part in version.split(".")) if _NUMBERS.fullmatch(version) else None


def moment(text: str) -> datetime | None:
    """Return the time in a text (RFC 3339, or a date: its start in UTC), None if it is neither."""
    if not text.isascii():
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
