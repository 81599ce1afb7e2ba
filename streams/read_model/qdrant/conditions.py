"""Filters and ranked queries of the read model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qdrant_client import models

from schemas.values import ImageState
from streams.read_model.qdrant.documents import LABEL_KEYS, OTHER_WORDS, SEQUENCE, SPARSE, TOKEN, TOMBSTONE, WORDS
from streams.read_model.records import VECTOR, Filters
from streams.read_model.words import Analyzer, Term, label_key, token_number

LABEL_WORDS = 3  # words of the longest label matched in a query
CANDIDATES = 256  # best matches among which equally good ones are ordered by age
NAMED_CANDIDATES = 64  # the same, of images found by a label alone: their labels are read


def equals(key: str, value: int | str) -> models.FieldCondition:
    """Return the condition that a field has a value. No booleans: the engine in process matches none."""
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def at_most(key: str, value: int) -> models.FieldCondition:
    """Return the condition that a field is at most a number."""
    return models.FieldCondition(key=key, range=models.Range(lte=value))


def has_id(image_id: str) -> models.HasIdCondition:
    """Return the condition of one point."""
    return models.HasIdCondition(has_id=[image_id])


def present(*must: models.Condition, owner: str | None = None) -> models.Filter:
    """Return the filter of images without tombstones, of one owner or of all."""
    owned = [equals("owner", owner)] if owner is not None else []
    return models.Filter(must=[*owned, *must], must_not=[equals(TOMBSTONE, 1)])


def unchanged(payload: Mapping[str, Any]) -> models.Filter:
    """Return the filter of an image that is still as its payload was read: every write of a record sets the token."""
    if TOKEN in payload:
        return models.Filter(must=[has_id(payload["image_id"]), equals(TOKEN, payload[TOKEN])])
    written_before = models.IsEmptyCondition(is_empty=models.PayloadField(key=TOKEN))
    return present(has_id(payload["image_id"]), equals("generation", payload["generation"]), written_before)


def listed(owner: str | None, wanted: Filters, analyzer: Analyzer) -> models.Filter:
    """Return the filter of a listing. Images deleted or being deleted never match."""
    state = wanted.state.value if wanted.state is not None else None
    must: list[models.Condition] = [
        equals(key, value)
        for key, value in (("bucket", wanted.bucket), ("category", wanted.category), ("state", state))
        if value is not None
    ]
    must.extend(equals("tags", tag) for tag in wanted.tags)
    must.extend(equals(LABEL_KEYS, label_key(label)) for label in wanted.labels)
    if wanted.since is not None or wanted.until is not None:
        between = models.DatetimeRange(gte=wanted.since, lt=wanted.until)
        must.append(models.FieldCondition(key="submitted_at", range=between))
    must.extend(has_term(WORDS["text"], term) for term in analyzer.terms(wanted.text or ""))
    found = present(*must, owner=owner)
    going = equals("state", ImageState.DELETED.value)
    return found.model_copy(update={"must_not": [equals(TOMBSTONE, 1), going]})


def has_term(key: str, term: Term) -> models.FieldCondition:
    """Return the condition that an indexed key of tokens contains a token or a phrase."""
    if len(term) == 1:
        return models.FieldCondition(key=key, match=models.MatchText(text=term[0]))
    return models.FieldCondition(key=key, match=models.MatchPhrase(phrase=" ".join(term)))


def by_words(owner: str, terms: Sequence[Term]) -> models.QueryRequest:
    """Return the query for images that contain all terms, each in any searchable key, by the sum of the BM25 scores."""
    tokens = [token for term in terms for token in term]
    # Every image that a sparse vector finds contains one of the tokens: of a single one, nothing else is required.
    required = terms if len(tokens) > 1 else ()
    everywhere = present(
        *(models.Filter(should=[has_term(key, term) for key in (WORDS["text"], OTHER_WORDS)]) for term in required),
        owner=owner,
    )
    scores = [f"$score[{place}]" for place in range(len(SPARSE))]
    return models.QueryRequest(
        prefetch=[
            models.Prefetch(query=asked(tokens), using=name, filter=everywhere, limit=CANDIDATES)
            for name in SPARSE.values()
        ],
        query=models.FormulaQuery(formula=models.SumExpression(sum=scores), defaults=dict.fromkeys(scores, 0.0)),
        limit=CANDIDATES,
    )


def by_labels(owner: str, names: Collection[str], tokens: Sequence[str]) -> models.QueryRequest:
    """Return the query for images that have one of these labels, the rarest first."""
    named = models.FieldCondition(key=LABEL_KEYS, match=models.MatchAny(any=sorted(names)))
    return models.QueryRequest(
        query=asked(tokens), using=SPARSE["labels"], filter=present(named, owner=owner), limit=NAMED_CANDIDATES
    )


def by_vector(
    owner: str, vector: Sequence[float], *, limit: int, min_score: float | None, params: models.SearchParams | None
) -> models.QueryRequest:
    """Return the query for the images nearest to a vector."""
    return models.QueryRequest(
        query=list(vector),
        using=VECTOR,
        filter=present(owner=owner),
        limit=limit,
        score_threshold=min_score,
        params=params,
    )


def asked(tokens: Sequence[str]) -> models.SparseVector:
    """Return the sparse vector of a query: each token counts once."""
    numbers = list(dict.fromkeys(map(token_number, tokens)))
    return models.SparseVector(indices=numbers, values=[1.0] * len(numbers))


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


def between(where: models.Filter, milliseconds: models.Range) -> models.Filter:
    """Return a filter limited to images of these milliseconds."""
    must = where.must if isinstance(where.must, list) else []
    return where.model_copy(update={"must": [*must, models.FieldCondition(key=SEQUENCE, range=milliseconds)]})
