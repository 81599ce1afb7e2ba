"""Schema of the Qdrant collection: vectors, indexes, payload, and word matching."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue
from qdrant_client import QdrantClient, models

from schemas.events.envelope import now
from schemas.values import ImageState
from streams.errors import NotReady
from streams.read_model.qdrant_connection import ANSWERED_ERRORS, status_of
from streams.read_model.qdrant_parameters import collection_parameters, vector_parameters
from streams.read_model.records import DIMENSIONS, VECTOR, HistoryEntry, ImageRecord
from streams.read_model.words import label_key, words_of
from streams.settings import QdrantSettings

Payload = dict[str, JsonValue]

LABEL_KEYS = "label_keys"  # labels in lower case, for matching; derived from `labels`
SEQUENCE = "sequence"  # milliseconds of the image id (UUIDv7), for newest-first; derived from `image_id`
HISTORY = "history"  # entries by name; not part of the record, and read only on request
RECORD = models.PayloadSelectorExclude(exclude=[HISTORY])
LABEL_WORDS = 3  # words of the longest label matched in a query
QUERY_WORDS = 64  # further words of a query are ignored

INDEXES: dict[str, models.PayloadSchemaType | models.KeywordIndexParams | models.TextIndexParams] = {
    "owner": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "state": models.PayloadSchemaType.KEYWORD,
    "bucket": models.PayloadSchemaType.KEYWORD,
    "tags": models.PayloadSchemaType.KEYWORD,
    "category": models.PayloadSchemaType.KEYWORD,
    "labels": models.PayloadSchemaType.KEYWORD,
    LABEL_KEYS: models.PayloadSchemaType.KEYWORD,
    "dominant_colour": models.PayloadSchemaType.KEYWORD,
    "original.sha256": models.PayloadSchemaType.KEYWORD,
    "master.sha256": models.PayloadSchemaType.KEYWORD,
    "deleted": models.PayloadSchemaType.BOOL,
    "generation": models.PayloadSchemaType.INTEGER,
    SEQUENCE: models.PayloadSchemaType.INTEGER,
    "submitted_at": models.PayloadSchemaType.DATETIME,
    "finished_at": models.PayloadSchemaType.DATETIME,
    "text": models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True, min_token_len=1
    ),
}


def prepare(client: QdrantClient, settings: QdrantSettings, *, indexes: bool) -> None:
    """Create the collection and its indexes if missing. NotReady if an existing collection does not fit."""
    name = settings.collection
    if not client.collection_exists(name):
        vectors = {VECTOR: vector_parameters(settings, DIMENSIONS)}
        try:
            client.create_collection(name, vectors_config=vectors, **collection_parameters(settings))
        except ANSWERED_ERRORS as error:
            if status_of(error) != 409:  # created concurrently by another process
                raise
    if not fits(client, name):
        raise NotReady(
            f"Qdrant collection {name} has no vector {VECTOR} of {DIMENSIONS} dimensions by cosine: "
            "choose another with DARKROOM_QDRANT__COLLECTION"
        )
    if indexes:
        existing = client.get_collection(name).payload_schema
        for field, schema in INDEXES.items():
            if field not in existing:
                client.create_payload_index(name, field_name=field, field_schema=schema, wait=True)


def fits(client: QdrantClient, name: str) -> bool:
    """Return whether a collection has the required vectors."""
    vectors = client.get_collection(name).config.params.vectors
    found = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    return found is not None and (found.size, found.distance) == (DIMENSIONS, models.Distance.COSINE)


def to_payload(record: ImageRecord) -> Payload:
    """Return the payload of a record."""
    return with_derived(record.model_dump(mode="json", exclude_none=True)) | {SEQUENCE: sequence(record.image_id)}


def to_entries(entries: Mapping[str, HistoryEntry]) -> Payload:
    """Return the payload of history entries."""
    return {name: entry.model_dump(mode="json", exclude_none=True) for name, entry in entries.items()}


def to_history(payload: Mapping[str, object]) -> dict[str, HistoryEntry]:
    """Return the history in a payload."""
    entries = payload.get(HISTORY)
    if not isinstance(entries, dict):
        return {}
    return {str(name): HistoryEntry.model_validate(entry) for name, entry in entries.items()}


def to_record(payload: Mapping[str, object]) -> ImageRecord:
    """Return the record in a payload."""
    return ImageRecord.model_validate(payload)


def with_derived(patch: Mapping[str, JsonValue]) -> Payload:
    """Return a patch with its derived keys."""
    found = dict(patch)
    labels = found.get("labels")
    if isinstance(labels, list | tuple):
        found[LABEL_KEYS] = [label_key(str(label)) for label in labels]
    return found


def tombstone(image_id: str, owner: str, generation: int) -> Payload:
    """Return the payload of a deleted image's tombstone."""
    record = ImageRecord(
        image_id=image_id,
        owner=owner,
        generation=generation,
        state=ImageState.DELETED,
        deleted=True,
        updated_at=now(),
    )
    return to_payload(record)


def sequence(image_id: str) -> int:
    """Return the first 48 bits of an id: unix milliseconds in a UUIDv7."""
    return uuid.UUID(image_id).int >> 80


def text_words(text: str | None) -> list[str]:
    """Return the words of a text filter, at most QUERY_WORDS."""
    return words_of(text or "")[:QUERY_WORDS]


def equals(key: str, value: bool | int | str) -> models.FieldCondition:
    """Return the condition that a field has a value."""
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def owned(owner: str, *more: models.FieldCondition) -> models.Filter:
    """Return the filter of an owner's images, without tombstones."""
    return models.Filter(must=[equals("owner", owner), equals("deleted", False), *more])


def labels_in(words: Sequence[str]) -> frozenset[str]:
    """Return every run of words that could name a label."""
    return frozenset(
        " ".join(words[start : start + size])
        for size in range(1, LABEL_WORDS + 1)
        for start in range(len(words) - size + 1)
    )


def share(words: Sequence[str], named: Collection[str]) -> float:
    """Return the share of the words that occur in the named labels, 0 to 1."""
    covered = {word for key in named for word in key.split()}
    return len(covered) / len(set(words))
