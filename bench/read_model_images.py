"""Images of the read model's benchmark: their facts, and the records that these facts end in.

20 owners. The first has 60 % of the images, so that its listing has a page 1 000 with 100 000; the others have 2 %.
Texts are 24 words of 5 000, by Zipf's law; labels are 1 to 4 of 40; vectors lie around 50 centres.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from agents.core.merge import learn, required_stages
from agents.indexing.fact_history import entry_of
from schemas.events.envelope import now
from schemas.events.facts import Fact, ImageEmbedded, ImageResized, ImageSanitized, ObjectsDetected, TextRead
from schemas.stored.results import Colour, SanitizedImage
from schemas.values import (
    DEFAULT_OWNER,
    RENDITION_SIDES,
    Box,
    DetectedObject,
    ImageState,
    ModelRef,
    ObjectRef,
    Profile,
    Rendition,
    StageReport,
    Vector,
)
from streams.object_store.keys import image_key, original_key, result_key
from streams.read_model.records import DIMENSIONS, HistoryEntry, ImageRecord, StageRecord

LARGE = str(DEFAULT_OWNER)  # the caller of a gateway without authentication
OWNERS = (LARGE, *(f"owner-{number:02}" for number in range(1, 20)))
SHARE_OF_LARGE = 0.6
VOCABULARY = 5_000
WORDS_PER_TEXT = 24
APART_MS = 7  # between two images
STAGES = ("sanitizer", "resizer", "ocr", "detector", "embedder")
_LABELS = (
    "person bicycle car motorcycle bus train truck boat bench bird cat dog horse sheep cow elephant bear zebra giraffe "
    "backpack umbrella handbag tie suitcase frisbee skis snowboard kite bottle cup fork knife spoon bowl banana apple "
    "sandwich orange carrot pizza"
)
LABELS = _LABELS.split()

_MODEL = ModelRef(name="model", sha256="f" * 64, backend="openvino")
_WHEN = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Image:
    """One image, the same for the same number."""

    number: int
    image_id: str
    owner: str

    @property
    def chance(self) -> random.Random:
        """A generator that depends on the number."""
        return random.Random(self.number)

    @property
    def text(self) -> str:
        """Its text: words by Zipf's law."""
        words, weights = _words()
        return " ".join(self.chance.choices(words, cum_weights=weights, k=WORDS_PER_TEXT))

    @property
    def sha256(self) -> str:
        """The hash of its original and its master."""
        return f"{self.chance.getrandbits(256):064x}"

    @property
    def labels(self) -> list[str]:
        """What it shows."""
        chance = self.chance
        return chance.sample(LABELS, chance.randint(1, 4))

    def facts(self) -> Iterator[Fact]:
        """Yield the facts of an image that passes every stage."""
        common = {
            "image_id": self.image_id,
            "owner": self.owner,
            "generation": 1,
            "profile": Profile(stages=STAGES),
            "occurred_at": _WHEN,
        }
        sha256 = self.sha256
        master = self._ref(image_key(self.image_id, 1, "master.png"), sha256)
        safe = SanitizedImage(
            master=master, width=1920, height=1080, source_format="jpeg", frames=1, perceptual_hash=sha256[:16],
            dominant_colour="#112233", palette=tuple(Colour(hex="#AABBCC", share=0.2) for _ in range(5)),
            thumbhash="1QcSHQRnh493V4dIh4eXh1h4kJUI",
        )  # fmt: skip
        yield ImageSanitized(
            **common, report=_report("sanitizer"), original=self._ref(original_key(self.owner, sha256), sha256),
            image=safe, bucket="holidays", filename=f"IMG_{self.number:06}.jpg", tags=("beach", "2026"),
            category="travel", context={"album": "summer", "rating": 4}, submitted_at=_WHEN,
        )  # fmt: skip
        renditions = tuple(
            Rendition(
                name=name, object=self._ref(image_key(self.image_id, 1, f"{name}.webp"), sha256), width=side,
                height=side * 9 // 16, aspect_ratio=1.778, format="webp",
            )
            for name, side in RENDITION_SIDES.items()
        )  # fmt: skip
        yield ImageResized(**common, report=_report("resizer"), renditions=renditions)
        result = self._ref(result_key(self.owner, sha256, "ocr", "1", "p"), sha256)
        yield TextRead(
            **common, report=_report("ocr"), content=self.text, span_count=6, mean_confidence=0.9, result=result
        )
        yield ObjectsDetected(**common, report=_report("detector"), objects=self.objects(), model=_MODEL)
        yield ImageEmbedded(**common, report=_report("embedder"), vector=Vector.of(self.vector()), model=_MODEL)

    def objects(self) -> tuple[DetectedObject, ...]:
        """Return the objects it shows."""
        box = Box(x=0.1, y=0.2, width=0.3, height=0.4)
        return tuple(DetectedObject(label=label, confidence=0.9, box=box, pixels=box) for label in self.labels)

    def vector(self) -> list[float]:
        """Return its unit vector: one of 50 centres, and noise."""
        noise = np.random.default_rng(self.number).normal(0, 0.7, DIMENSIONS)
        vector = _centres()[self.number % len(_centres())] + noise
        return [float(value) for value in vector / np.linalg.norm(vector)]

    def _ref(self, key: str, sha256: str) -> ObjectRef:
        return ObjectRef(bucket="darkroom", key=key, sha256=sha256, size=1_000_000, content_type="image/webp")


def images_of(count: int, *, first: int = 0) -> list[Image]:
    """Return images with increasing ids, the last of now."""
    began_ms = time.time_ns() // 1_000_000 - count * APART_MS
    return [
        Image(number, _image_id(began_ms + at * APART_MS, number), _owner(number))
        for at, number in enumerate(range(first, first + count))
    ]


def recorded(image: Image) -> tuple[ImageRecord, dict[str, HistoryEntry]]:
    """Return the record and the history that an image's facts end in, as the indexer writes them."""
    record, history = _example()
    own = {
        "image_id": image.image_id,
        "owner": image.owner,
        "filename": f"IMG_{image.number:06}.jpg",
        "text": image.text,
        "objects": image.objects(),
        "labels": tuple(sorted(image.labels)),
        **{
            key: ref.model_copy(update={"sha256": image.sha256})
            for key, ref in (("original", record.original), ("master", record.master))
            if ref is not None
        },
    }
    return record.model_copy(update=own), history


@cache
def _example() -> tuple[ImageRecord, dict[str, HistoryEntry]]:
    keys: dict[str, object] = {}
    stages: dict[str, StageRecord] = {}
    history: dict[str, HistoryEntry] = {}
    example = images_of(1)[0]
    for fact in example.facts():
        learned = learn(fact)
        keys |= learned.keys
        stages[learned.stage] = StageRecord(
            state=learned.state, version="1", attempts=1, duration_ms=50, result=learned.result, finished_at=_WHEN
        )
        history |= entry_of(fact, learned.state)
    ended = {"state": ImageState.COMPLETED, "updated_at": now(), "finished_at": now()}
    required = required_stages(Profile(stages=STAGES))
    named = {"image_id": example.image_id, "owner": example.owner, "generation": 1, "required": required}
    return ImageRecord.model_validate({**named, **ended, "stages": stages, **keys}), history


def word(rank: int) -> str:
    """Return the word of a rank: 0 is the most frequent."""
    return _words()[0][rank]


def _owner(number: int) -> str:
    chance = random.Random(f"owner of {number}")
    return LARGE if chance.random() < SHARE_OF_LARGE else chance.choice(OWNERS[1:])


def _image_id(milliseconds: int, number: int) -> str:
    random_part = random.Random(f"id of {number}").getrandbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random_part >> 62) << 64 | 0b10 << 62 | random_part & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def _report(stage: str) -> StageReport:
    return StageReport(stage=stage, version="1", attempts=1, duration_ms=50, worker="worker-1")


@cache
def _words() -> tuple[list[str], list[float]]:
    chance = random.Random("words")
    syllables = [consonant + vowel for consonant in "bcdfghklmnprstvz" for vowel in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        found["".join(chance.choices(syllables, k=chance.randint(2, 4)))] = None
    return list(found), list(accumulate(1 / (rank + 2) for rank in range(VOCABULARY)))


@cache
def _centres() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(0).normal(0, 1, (50, DIMENSIONS))
