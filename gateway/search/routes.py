"""Search by words (text in images, labels, file names, annotations) and, with a CLIP encoder, by meaning.

Every image has some cosine to every query, so images below a minimum are no results. The lists of both are merged by
reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009, k = 60), because cosine similarities and word matches
are not comparable.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import Query, Request

from gateway.access.dependencies import Who
from gateway.access.identity import Identity, Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, media_type, read_json
from gateway.http.problems import Problem, documented
from gateway.http.request_bodies import receive_form
from gateway.http.request_context import base_url
from gateway.images.lookup import Lookup
from gateway.protocols import TextEncoder, model_reason
from gateway.search.views import SEARCH_KEYS, search_item
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.search import SearchAnswer, SearchItem, SearchLike, Way
from schemas.values import Owner
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Hit, ImageRecord

log = logging.getLogger(__name__)

RANK_CONSTANT = 60
_WAYS: tuple[Way, ...] = get_args(Way)
_QUOTES = re.compile(r'["“”„«»]')
_NO_ENCODER = "no CLIP encoder is configured"
_FIELDS = frozenset({"limit", "min_similarity"})
_FILE_FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "limit": {"type": "integer"},
            "min_similarity": {"type": "number", "minimum": -1, "maximum": 1},
        },
    }
}


@dataclass(frozen=True, slots=True)
class Ranked:
    """One image, with every way it matched."""

    record: ImageRecord
    score: float
    similarity: float | None
    matched: tuple[Way, ...]


def fuse(lists: Sequence[Sequence[Hit]]) -> list[Ranked]:
    """Merge lists of hits, each best first. A score of 1 means first in every list."""
    best = len(lists) / (RANK_CONSTANT + 1)
    scores: dict[str, float] = {}
    hits: dict[str, list[Hit]] = {}
    for found in lists:
        for rank, hit in enumerate(found, start=1):
            image_id = hit.record.image_id
            scores[image_id] = scores.get(image_id, 0.0) + 1 / (RANK_CONSTANT + rank)
            hits.setdefault(image_id, []).append(hit)
    ranked = [
        Ranked(
            record=found[0].record,
            score=scores[image_id] / best,
            similarity=next((hit.score for hit in found if "meaning" in hit.matched), None),
            matched=tuple(way for way in _WAYS if any(way in hit.matched for hit in found)),
        )
        for image_id, found in hits.items()
    ]
    return sorted(ranked, key=lambda item: item.score, reverse=True)


@dataclass(frozen=True, slots=True)
class Search:
    """The search endpoints."""

    settings: GatewaySettings
    read_model: ReadModel
    lookup: Lookup
    encoder: TextEncoder | None

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes("/api/v1/search", tags=["search"])
        unavailable = ProblemCode.DEPENDENCY_UNAVAILABLE
        body = described(SearchLike)
        body["requestBody"]["content"]["multipart/form-data"] = _FILE_FORM
        routes.add_api_route(
            "",
            self.by_words,
            dependencies=[requires(Scope.SEARCH)],
            summary="Search images by words",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.INVALID_FIELD, unavailable),
        )
        routes.add_api_route(
            "/image",
            self.by_image,
            methods=["POST"],
            dependencies=[requires(Scope.SEARCH)],
            summary="Search similar images",
            response_model_exclude_none=True,
            openapi_extra=body,
            responses=documented(
                ProblemCode.MISSING_FILE,
                ProblemCode.NOT_FOUND,
                ProblemCode.NO_VECTOR,
                ProblemCode.FILE_TOO_LARGE,
                ProblemCode.UNSUPPORTED_FORMAT,
                ProblemCode.CORRUPT_IMAGE,
                ProblemCode.MODEL_UNAVAILABLE,
                unavailable,
            ),
        )
        return routes

    async def by_words(
        self,
        request: Request,
        identity: Who,
        q: Annotated[
            str,
            Query(
                description='words, and `"exact phrases"` in double quotes; case and accents are ignored', min_length=1
            ),
        ],
        limit: Annotated[int | None, Query(ge=1, description="maximum number of results")] = None,
        min_similarity: Annotated[
            float | None,
            Query(
                ge=-1,
                le=1,
                description="minimum cosine of an image found by meaning; default: the server's setting",
            ),
        ] = None,
    ) -> SearchAnswer:
        """Find images by meaning and by words, best first.

        Words are those of the image's text, the labels of its objects (singular or plural), file name, tags, category
        and metadata. Images less similar than `min_similarity` are not found by meaning.
        """
        words = " ".join(q.split())
        meaning = " ".join(_QUOTES.sub(" ", words).split())
        if not meaning or len(words) > self.settings.max_query_length:
            raise _invalid_field("q", f"must have 1 to {self.settings.max_query_length} characters")
        count = self._limit(limit)
        vector, reason = await self._encode(meaning, identity)
        least = self.settings.min_text_similarity if min_similarity is None else min_similarity
        owner = identity.owner
        named = self.read_model.search_words(owner, words, limit=count, keys=SEARCH_KEYS)
        in_words = bounded(named, self.settings.query_timeout_s)
        if vector is None:
            lists = [await in_words]
        else:
            lists = list(await asyncio.gather(self._near(owner, vector, count, least), in_words))
        items = await self._items(lists, count, words, request)
        return SearchAnswer(query=words, by_meaning=vector is not None, reason=reason, items=items)

    async def by_image(self, request: Request, identity: Who) -> SearchAnswer:
        """Find images similar to an uploaded file, or to a known image named in JSON; `min_similarity` is the minimum
        cosine, by default the server's setting."""
        if media_type(request) == "application/json":
            return await self._similar_to_known(request, identity.owner)
        encoder = self._encoder(identity)
        limit = self.settings.max_query_image_bytes
        async with receive_form(request, self.settings, allowed=_FIELDS, max_bytes=limit) as form:
            count = self._limit(_whole_number(form.fields.get("limit")))
            least = self._least(_cosine(form.fields.get("min_similarity")))
            data = await asyncio.to_thread(form.file.path.read_bytes)
        try:
            vector = await bounded(encoder.encode_image(data), self.settings.encode_timeout_s)
        except ValueError:
            raise Problem(ProblemCode.CORRUPT_IMAGE, "The image cannot be decoded.") from None
        items = await self._items([await self._near(identity.owner, vector, count, least)], count, "", request)
        return SearchAnswer(query="image", by_meaning=True, items=items)

    async def _similar_to_known(self, request: Request, owner: Owner) -> SearchAnswer:
        requested = await read_json(request, SearchLike, self.settings)
        count = self._limit(requested.limit)
        record = await self.lookup.image(requested.image_id, owner)
        vector = await bounded(self.read_model.vector_of(record.image_id), self.settings.query_timeout_s)
        if vector is None:
            raise Problem(ProblemCode.NO_VECTOR, "The image has no vector: the embedder is not done, or was skipped.")
        near = await self._near(owner, vector, count + 1, self._least(requested.min_similarity))
        others = [hit for hit in near if hit.record.image_id != record.image_id]
        items = await self._items([others], count, "", request)
        return SearchAnswer(query=f"image {record.image_id}", by_meaning=True, items=items)

    async def _encode(self, words: str, identity: Identity) -> tuple[list[float] | None, str | None]:
        if self.encoder is None:
            return None, _NO_ENCODER
        available, reason = self.encoder.available()
        if not available:
            return None, model_reason(reason, operator=identity.is_operator)
        try:
            return await bounded(self.encoder.encode_text(words), self.settings.encode_timeout_s), None
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("CLIP encoder unavailable", extra={"error": repr(error)})
            return None, "the CLIP encoder is unavailable"

    def _encoder(self, identity: Identity) -> TextEncoder:
        if self.encoder is None:
            raise Problem(ProblemCode.MODEL_UNAVAILABLE, f"Similarity search is unavailable: {_NO_ENCODER}.")
        available, reason = self.encoder.available()
        if not available:
            clause = model_reason(reason, operator=identity.is_operator)
            raise Problem(ProblemCode.MODEL_UNAVAILABLE, f"Similarity search is unavailable: {clause}.")
        return self.encoder

    async def _near(self, owner: Owner, vector: list[float], limit: int, least: float) -> list[Hit]:
        near = self.read_model.search_vector(owner, vector, limit=limit, min_score=least, keys=SEARCH_KEYS)
        return await bounded(near, self.settings.query_timeout_s)

    async def _items(self, lists: list[list[Hit]], count: int, words: str, request: Request) -> tuple[SearchItem, ...]:
        seen = await self.lookup.visible(lists)
        base = base_url(request, self.settings)
        return tuple(
            search_item(
                found.record,
                score=found.score,
                similarity=found.similarity,
                matched=found.matched,
                query=words,
                snippet_length=self.settings.snippet_length,
                base=base,
            )
            for found in fuse(seen)[:count]
        )

    def _least(self, requested: float | None) -> float:
        """Return the minimum cosine between two images."""
        return self.settings.min_image_similarity if requested is None else requested

    def _limit(self, requested: int | None) -> int:
        return min(requested or self.settings.search_limit, self.settings.max_search_limit)


def _whole_number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        raise _invalid_field("limit", "must be a whole number above zero")
    return int(text)


def _cosine(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        cosine = float(text)
    except ValueError:
        cosine = math.nan
    if not -1 <= cosine <= 1:
        raise _invalid_field("min_similarity", "must be a number from -1 to 1")
    return cosine


def _invalid_field(where: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{where}: {detail}", (ProblemItem(field=where, detail=detail),))
