"""How records are stored as points: payload, derived keys and vectors.

Point id = image id. A point exists before its CLIP vector does. Derived keys hold nothing of their own: `Derivation`
computes them from the record's keys, whenever those are written.

Structured values that no filter names are stored as JSON text: handing a value to the engine takes 4 µs, and it
rewrites a point's whole payload with every write.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json, to_json
from qdrant_client import models

from schemas.events.envelope import now
from schemas.values import ImageState
from streams.read_model.qdrant.points import Update
from streams.read_model.records import (
    DIMENSIONS,
    HISTORY_LIMIT,
    VECTOR,
    Change,
    HistoryEntry,
    ImageRecord,
    StageRecord,
    shortened,
)
from streams.read_model.words import Analyzer, bm25_weights, joined, label_forms, texts_in, together

Payload = dict[str, JsonValue]
Vectors = dict[str, list[float] | models.SparseVector]

SCHEMA = 4  # of what is stored; raised with every change that existing points must be given
COLLECTION_POINT = "00000000-0000-0000-0000-000000000000"  # describes the collection; no image has this id

SEQUENCE = "sequence"  # milliseconds of the image id (UUIDv7), for newest first
TOMBSTONE = "tombstone"  # 1 on tombstones and the collection's own point: Qdrant in process matches no booleans
LABEL_KEYS = "label_keys"  # forms by which a detected object is found: lower case, singular and plural
HISTORY = "history"  # entries by name; not part of the record, and read only on request
TOKEN = "token"  # a random number, another after each write of the record  # noqa: S105

ENTRIES = ("stages", "analysis", HISTORY)
"""Keys of named entries, which are written beside each other."""

AS_TEXT = frozenset(
    {"parameters", "retries", "context", "capture", "palette", "renditions", "objects", "pages", *ENTRIES}
)
"""Keys that are stored as JSON text."""

_STRUCTURED = AS_TEXT - {HISTORY}  # of the record


@dataclass(frozen=True, slots=True)
class Searchable:
    """A key of the record that word search covers."""

    way: str  # in `Hit.matched`
    average_tokens: float  # typical length of a document, for BM25
    values: Callable[[Any], Sequence[str]]  # the key's texts


def _one(value: Any) -> Sequence[str]:
    return (str(value),)


def _each(value: Any) -> Sequence[str]:
    return [str(text) for text in value]


def _labels(value: Any) -> Sequence[str]:
    return [form for label in value for form in label_forms(str(label))]


SEARCHABLE: Mapping[str, Searchable] = {
    "text": Searchable("text", 24, _one),
    "labels": Searchable("label", 6, _labels),
    "filename": Searchable("filename", 4, _one),
    "tags": Searchable("tag", 4, _each),
    "category": Searchable("category", 2, _one),
    "context": Searchable("context", 12, texts_in),
    "codes": Searchable("code", 4, _each),
}
"""Key of the record -> how it is searched. A further key costs this line, and a higher SCHEMA if records have it."""

WORDS = {key: f"words_{key}" for key in SEARCHABLE}
"""Searchable key -> the derived key with its tokens."""

OTHER_WORDS = "words_other"  # the tokens of all of them but the text, which listings filter: an index takes 100 MB

SPARSE = {key: f"words-{key}" for key in SEARCHABLE}
"""Searchable key -> the sparse vector that ranks it."""

RECORD = models.PayloadSelectorExclude(exclude=[HISTORY, *WORDS.values(), OTHER_WORDS])
"""Selects what `ImageRecord` reads."""

INDEXES: dict[str, models.PayloadSchemaType | models.KeywordIndexParams | models.TextIndexParams] = {
    "owner": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    **dict.fromkeys(
        ("state", "bucket", "tags", "category", LABEL_KEYS, "original.sha256", "master.sha256"),
        models.PayloadSchemaType.KEYWORD,
    ),
    **dict.fromkeys((TOMBSTONE, "generation", SEQUENCE), models.PayloadSchemaType.INTEGER),
    "submitted_at": models.PayloadSchemaType.DATETIME,
    **{
        key: models.TextIndexParams(
            type=models.TextIndexType.TEXT,
            tokenizer=models.TokenizerType.WHITESPACE,
            min_token_len=1,
            lowercase=False,
            phrase_matching=True,
        )
        for key in (WORDS["text"], OTHER_WORDS)
    },
}
"""Payload key -> the index that it needs."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """Computes the derived keys and sparse vectors of what is written."""

    analyzer: Analyzer = field(default_factory=Analyzer)

    def keys(self, patch: Mapping[str, JsonValue], words: Mapping[str, str], known: Mapping[str, Any]) -> Payload:
        """Return the derived keys of a patch to a known payload; `words` are its searchable forms. None for none."""
        found: Payload = {WORDS[key]: form or None for key, form in words.items()}
        if words.keys() - {"text"}:
            forms = {**known, **found}
            found[OTHER_WORDS] = together(forms.get(name) for key, name in WORDS.items() if key != "text") or None
        if "labels" in patch:
            labels = patch["labels"]
            found[LABEL_KEYS] = list(dict.fromkeys(_labels(labels))) if isinstance(labels, list | tuple) else None
        return found

    def words(self, patch: Mapping[str, JsonValue]) -> dict[str, str]:
        """Return the searchable form of each searchable key in a patch; empty for none."""
        return {
            key: joined(self.analyzer.tokens(text) for text in searchable.values(patch[key]))
            if patch[key] is not None
            else ""
            for key, searchable in SEARCHABLE.items()
            if key in patch
        }

    def sparse(self, words: Mapping[str, str]) -> dict[str, models.SparseVector]:
        """Return the sparse vectors of searchable forms, by name; empty ones for empty forms."""
        return {SPARSE[key]: sparse_vector(words[key], SEARCHABLE[key].average_tokens) for key in words}

    def point(self, record: ImageRecord, history: Mapping[str, HistoryEntry] | None = None) -> models.PointStruct:
        """Return the whole point of a record without a CLIP vector."""
        known = record.model_dump(mode="json", exclude_none=True)
        payload: Payload = {key: value for key, value in known.items() if value not in ([], {})}
        words = {key: form for key, form in self.words(payload).items() if form}
        derived = self.keys(payload, words, {})
        payload = {**stored(payload), **derived, SEQUENCE: sequence(record.image_id), TOKEN: new_token()}
        if history:
            payload[HISTORY] = as_text(history)
        if record.deleted:
            payload[TOMBSTONE] = 1
        return models.PointStruct(id=record.image_id, payload=payload, vector=dict(self.sparse(words)))

    def update(self, found: Mapping[str, Any], change: Change, token: int, where: models.Filter) -> Update:
        """Return the write of a change to the point whose payload was found, its entries included."""
        words = self.words(change.patch)
        payload = {**stored(change.patch), **self.keys(change.patch, words, found), TOKEN: token}
        for key, added in zip(ENTRIES, (change.stages, change.analysis, change.history), strict=True):
            if added:
                entries = {**_read(key, found.get(key) or {}), **added}
                if key == HISTORY and len(entries) > HISTORY_LIMIT:
                    entries = shortened(to_history({HISTORY: entries}))
                payload[key] = as_text(entries)
        vectors: Vectors = dict(self.sparse({key: form for key, form in words.items() if form}))
        if change.vector is not None:
            vectors[VECTOR] = list(change.vector)
        removed = [SPARSE[key] for key, form in words.items() if not form]
        return Update(found["image_id"], where, payload, vectors, removed)


def sparse_vector(document: str, average_tokens: float) -> models.SparseVector:
    """Return the sparse vector of a document in its searchable form."""
    weights = bm25_weights(document, average_tokens)
    return models.SparseVector(indices=list(weights), values=list(weights.values()))


def stored(keys: Mapping[str, JsonValue]) -> Payload:
    """Return keys of a record as they are stored."""
    return {key: as_text(value) if value and key in AS_TEXT else value for key, value in keys.items()}


def as_text(value: object) -> str:
    """Return JSON text; of a model, without what is None."""
    return to_json(value, exclude_none=True).decode()


def to_record(payload: Mapping[str, object]) -> ImageRecord:
    """Return the record in a payload, also of one that an earlier version has written."""
    structured = {key: _read(key, payload[key]) for key in _STRUCTURED if key in payload}
    return ImageRecord.model_validate({**payload, **structured})


def to_history(payload: Mapping[str, object]) -> dict[str, HistoryEntry]:
    """Return the history in a payload."""
    entries = _read(HISTORY, payload.get(HISTORY) or {})
    return {name: HistoryEntry.model_validate(entry) for name, entry in entries.items()}


def _read(key: str, value: Any) -> Any:
    """Return the value of a stored key; structured ones were stored as such until schema 3, and entries one by one."""
    if isinstance(value, str):
        return _stages(value) if key == "stages" else from_json(value)
    if key in ENTRIES and isinstance(value, dict):
        return {name: from_json(entry) if isinstance(entry, str) else entry for name, entry in value.items()}
    return value


@lru_cache(maxsize=1024)
def _stages(text: str) -> dict[str, StageRecord]:
    """Return stages, which each fact of an image reads again."""
    return {name: StageRecord.model_validate(stage) for name, stage in from_json(text).items()}


def new_token() -> int:
    """Return a TOKEN, which no other process returns."""
    return secrets.randbits(62)


def tombstone(image_id: str, owner: str, generation: int) -> ImageRecord:
    """Return a deleted image's record: no personal data but its owner."""
    return ImageRecord(
        image_id=image_id,
        owner=owner,
        generation=generation,
        state=ImageState.DELETED,
        deleted=True,
        updated_at=now(),
    )


def sequence(image_id: str) -> int:
    """Return the first 48 bits of an id: unix milliseconds in a UUIDv7."""
    return uuid.UUID(image_id).int >> 80


def vectors_of_collection() -> dict[str, models.VectorParams]:
    """Return the dense vectors that the collection must have."""
    return {VECTOR: models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)}
