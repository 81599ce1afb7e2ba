"""Which objects an event may name: its owner's originals and results, and its image's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from darkroom.generate.docs import event_types
from schemas.events.envelope import Event
from schemas.events.facts import ImageRefused, ImageResized, ImageSanitized, StageFailed, TextRead
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.values import ErrorCode
from streams.object_store.keys import image_key, image_prefix, originals_prefix, results_prefix
from streams.runtime.object_references import original_of, refused_reference

GOLDEN = sorted((Path(__file__).parents[3] / "data" / "events").glob("v*/*.json"))
KINDS = {kind.type: kind for kind in event_types()}
BUCKETS = ("darkroom",)
IMAGE, OTHER = "0198c0de-7a11-7abc-8def-0123456789ab", "0198c0de-7a11-7abc-8def-0123456789ac"


def forged(kind: type[Event], path: tuple[str | int, ...], key: str) -> Event:
    """Return the full golden event of a type with an object of this key at a path of its body."""
    name = kind.type.split(".")[2]
    body = json.loads((GOLDEN[0].parent / f"{name}.json").read_text())["body"]
    *parents, last = path
    place = body
    for step in parents:
        place = place[step]
    place[last] = {"bucket": "darkroom", "key": key, "sha256": "a" * 64, "size": 1}
    return kind.model_validate(body)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_published_events_name_only_what_they_may(path: Path) -> None:
    """No golden event of any type is refused."""
    found = json.loads(path.read_text())
    body = {"owner": "acme", **found["body"]}  # the smallest ones leave the owner out
    event = KINDS[found["headers"]["ce_type"]].model_validate(body)
    assert refused_reference(event, BUCKETS) is None


@pytest.mark.parametrize(
    ("kind", "path", "allowed"),
    [
        (ImageUploaded, ("original",), originals_prefix("acme")),
        (ImageFetched, ("original",), originals_prefix("acme")),
        (ImageSanitized, ("original",), originals_prefix("acme")),
        (ImageRefused, ("original",), originals_prefix("acme")),
        (StageFailed, ("original",), originals_prefix("acme")),
        (ImageSanitized, ("image", "master"), image_prefix(IMAGE)),
        (ImageResized, ("renditions", 0, "object"), image_prefix(IMAGE)),
        (TextRead, ("result",), results_prefix("acme")),
        (TextRead, ("report", "result"), results_prefix("acme")),
        (ImageResized, ("report", "result"), results_prefix("acme")),
    ],
)
def test_every_reference_is_bound_to_its_image_and_owner(
    kind: type[Event], path: tuple[str | int, ...], allowed: str
) -> None:
    """A key elsewhere in the bucket, of another owner or image, or that leaves its prefix again, is refused."""
    assert refused_reference(forged(kind, path, f"{allowed}x/y"), BUCKETS) is None
    outside = (
        "keys/abc.json", "jobs/x.json", "originals/ben/aa/x", "originals/acme2/aa/x", "results/ben/x.json",
        image_key(OTHER, 1, "master.png"), f"{allowed}../../ben/x", allowed.rstrip("/"), "",
    )  # fmt: skip
    for key in outside:
        error = refused_reference(forged(kind, path, key), BUCKETS)
        assert error is not None, key
        assert error.code is ErrorCode.REFERENCE_NOT_ALLOWED


@pytest.mark.parametrize("number", [0, 1])
def test_every_page_of_a_document_is_a_file_of_its_image(number: int) -> None:
    """A page's object elsewhere in the bucket is refused, whichever page it is."""
    body = json.loads((GOLDEN[0].parent / "sanitized.contents.json").read_text())["body"]
    body["image"]["pages"][number]["object"]["key"] = image_key(OTHER, 1, "page-2.png")
    error = refused_reference(ImageSanitized.model_validate(body), BUCKETS)
    assert error is not None
    assert error.code is ErrorCode.REFERENCE_NOT_ALLOWED


def test_a_forged_original_is_not_repeated_in_facts() -> None:
    """The fact of a refused event names no original: it would be refused itself, and its image never end."""
    assert original_of(forged(ImageUploaded, ("original",), "keys/abc.json")) is None
    assert original_of(forged(ImageUploaded, ("original",), "originals/acme/aa/x")) is not None


def test_an_object_in_another_bucket_is_refused() -> None:
    """Only the configured bucket is read, so an event that names another one is refused, unless it is a known name."""
    event = forged(ImageUploaded, ("original",), "originals/acme/aa/x")
    error = refused_reference(event, ("images",))
    assert error is not None
    assert error.code is ErrorCode.REFERENCE_NOT_ALLOWED
    assert "bucket images, not in 'darkroom'" in str(error)
    assert refused_reference(event, ("images", "darkroom")) is None
