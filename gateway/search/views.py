"""Search results built from records: the item, and the part of the text that matched. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gateway.images.views import urls
from schemas.http.search import SearchItem
from streams.read_model.records import ImageRecord
from streams.read_model.words import Analyzer, Term

SEARCH_KEYS = ("renditions", "labels", "text", "tags", "category", "context")
"""Keys of the record that `search_item` reads, besides those that every record has."""

_SEARCHED = 20_000  # characters of a text, so that a page of long texts does not block the event loop


def search_item(
    record: ImageRecord,
    *,
    score: float,
    similarity: float | None,
    matched: tuple[str, ...],
    query: str,
    snippet_length: int,
    base: str,
) -> SearchItem:
    """Return one image of a search result; its text only if the text matched."""
    return SearchItem(
        image_id=record.image_id,
        score=round(min(score, 1.0), 4),
        similarity=None if similarity is None else round(similarity, 4),
        matched=matched,
        urls=urls(record, base),
        labels=record.labels,
        text=snippet(record.text, query, snippet_length) if "text" in matched else None,
        tags=record.tags,
        category=record.category,
        context=record.context,
    )


def snippet(text: str | None, query: str, length: int) -> str | None:
    """Return at most `length` characters of a text: the first part with the most words and phrases of the query."""
    if not text:
        return None
    flat = " ".join(text.split())
    first = _best_place(_places(flat[:_SEARCHED], Analyzer().terms(query)), length * 3 // 4)
    start = max(0, min(first - length // 4, len(flat) - length))
    return flat[start : start + length]


def _best_place(places: Sequence[tuple[int, Term]], reach: int) -> int:
    """Return the offset from which the most different terms are within `reach` characters, 0 if there is none."""
    best, best_count, last = 0, 0, 0
    for at, (first, _) in enumerate(places):
        while last < len(places) and places[last][0] <= first + reach:
            last += 1
        count = len({term for _, term in places[at:last]})
        if count > best_count:
            best, best_count = first, count
    return best


def _places(flat: str, terms: Sequence[Term]) -> list[tuple[int, Term]]:
    """Return where the terms begin in a text, in order."""
    tokens = list(_tokens(flat))
    return [
        (start, term)
        for at, (start, token) in enumerate(tokens)
        for term in terms
        if term[0] == token and term == tuple(found for _, found in tokens[at : at + len(term)])
    ]


def _tokens(flat: str) -> Iterator[tuple[int, str]]:
    """Yield the tokens of a text, as search has them, each with its offset."""
    analyzer = Analyzer()
    for piece in re.finditer(r"\S+", flat):
        tokens = analyzer.tokens(piece[0])
        after = 0
        for token in tokens:
            found = piece[0].casefold().find(token, after) if len(tokens) > 1 else 0
            after = max(found, after)
            yield piece.start() + after, token
