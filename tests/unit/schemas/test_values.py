"""Values of events."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.values import (
    ERROR_MEANINGS,
    OPTIONAL_STAGES,
    REQUIRED_STAGES,
    ErrorCode,
    ObjectRef,
    Profile,
    Vector,
    job_id_of,
    new_image_id,
    split_job_id,
)


def test_image_ids_are_uuid7() -> None:
    """An image id is an RFC 9562 version 7 UUID with its creation time."""
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(new_image_id()) for _ in range(200)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    for found in made:
        assert (found.version, found.variant) == (7, uuid.RFC_4122)
        assert before <= found.int >> 80 <= after


def test_image_ids_use_every_random_bit() -> None:
    """Both random fields of an id are filled: over many milliseconds every free bit is seen set and unset."""
    made = []
    for _ in range(200):
        made.append(uuid.UUID(new_image_id()).int)
        time.sleep(0.0011)  # within a millisecond ids only count up
    seen_set = seen_unset = 0
    for value in made:
        seen_set |= value
        seen_unset |= ~value
    free = (0xFFF << 64) | ((1 << 62) - 1)
    assert seen_set & free == free
    assert seen_unset & free == free


@given(st.uuids(), st.integers(1, 999_999_999))
def test_a_job_id_names_its_image_and_generation(image: uuid.UUID, generation: int) -> None:
    """A job id is computable from image and generation, and can be split again."""
    assert split_job_id(job_id_of(str(image), generation)) == (str(image), generation)


@given(st.text() | st.builds("{}.{}".format, st.uuids(), st.text()))
def test_other_text_is_not_a_job_id(text: str) -> None:
    """Any other text raises ValueError and nothing else."""
    try:
        image_id, generation = split_job_id(text)
    except ValueError:
        return
    assert uuid.UUID(image_id)
    assert 0 <= generation <= 999_999_999


@pytest.mark.parametrize(
    "text", ["", ".", "x.1", f"{uuid.UUID(int=1)}", f"{uuid.UUID(int=1)}.-1", f"{uuid.UUID(int=1)}.٣"]
)
def test_refuses_job_ids(text: str) -> None:
    """A missing part, a sign and digits of other scripts are refused."""
    with pytest.raises(ValueError, match=r"."):
        split_job_id(text)


@given(st.lists(st.floats(width=32), min_size=1, max_size=600))
def test_a_vector_keeps_its_floats(values: list[float]) -> None:
    """Packing and unpacking gives the same float32 values, NaN included."""
    again = Vector.of(values).values()
    assert [repr(value) for value in again] == [repr(value) for value in values]


@pytest.mark.parametrize(("data", "dimensions"), [("AAAA", 1), ("AAAAAA==", 2), ("", 1), ("!", 1), ("AAAAAA== ", 1)])
def test_a_broken_vector_is_refused(data: str, dimensions: int) -> None:
    """Data that is not base64, or has another length than declared, raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        Vector(data=data, dimensions=dimensions).values()


def test_every_code_has_one_meaning() -> None:
    """Each error code has one meaning, a sentence."""
    explained = [code for codes in ERROR_MEANINGS.values() for code in codes]
    assert sorted(explained) == sorted(ErrorCode)
    assert all(text.endswith(".") for codes in ERROR_MEANINGS.values() for text in codes.values())


def test_codes_are_fit_for_labels_and_anchors() -> None:
    """A code is its name in lower-case words joined by hyphens."""
    for code in ErrorCode:
        assert code.value == code.name.lower().replace("_", "-")


def test_the_sanitizer_is_never_optional() -> None:
    """A profile can omit any stage except the sanitizer; by default it omits the optional ones."""
    assert {stage for stage in REQUIRED_STAGES if not Profile().requires(stage)} == OPTIONAL_STAGES
    assert Profile(stages=()).requires("sanitizer")
    assert not Profile(stages=("ocr",)).requires("resizer")


@pytest.mark.parametrize("sha256", ["", "A" * 63, "0" * 63, "0" * 64 + "\n", "g" * 64])
def test_an_object_reference_has_a_sha256(sha256: str) -> None:
    """An object reference without a valid sha256 is invalid."""
    with pytest.raises(ValidationError):
        ObjectRef(bucket="b", key="k", sha256=sha256, size=0)


def test_a_sha256_in_upper_case_is_the_same() -> None:
    """Hashes are compared and used in keys as text, so they have one spelling."""
    assert ObjectRef(bucket="b", key="k", sha256="AB" * 32, size=0).sha256 == "ab" * 32


def test_values_are_frozen() -> None:
    """A wire value is frozen."""
    with pytest.raises(ValidationError):
        ObjectRef(bucket="b", key="k", sha256="0" * 64, size=0).size = 1  # type: ignore[misc]


def test_ids_of_one_process_increase() -> None:
    """Of two images, the one accepted later has the greater id, even within a millisecond."""
    ids = [new_image_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5000
    assert {uuid.UUID(image_id).version for image_id in ids} == {7}
    assert {uuid.UUID(image_id).variant for image_id in ids} == {uuid.RFC_4122}


def test_ids_increase_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the clock is set back by an hour, ids keep increasing, so that newest first stays correct."""
    first = new_image_id()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
    later = [new_image_id() for _ in range(100)]
    assert [first, *later] == sorted([first, *later])
