"""Feature extraction: CLIP vectors of images, without storing them or publishing events.

An image is sent as a form or as the raw body; for a known image its id is enough, and the stored vector is returned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from gateway.access.dependencies import Who
from gateway.access.identity import Identity, Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, media_type, read_json
from gateway.http.multipart import Rules
from gateway.http.problems import Problem, documented
from gateway.http.request_bodies import receive_file, receive_files, receive_form
from gateway.http.spooling import Arriving
from gateway.images.lookup import Lookup
from gateway.limits.rate_limits import FEATURES, Limits
from gateway.protocols import ModelUnavailable, Undecodable, model_reason
from gateway.search.feature_batching import Batching, Busy
from gateway.settings import GatewaySettings
from schemas.http.features import FeatureBatch, FeatureError, FeatureItem, FeatureModel, Features, FeaturesOf
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.stored.results import ImageEmbedding
from schemas.values import ModelRef, Owner, StageState
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import is_below, results_prefix
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.object_store.results import StoredResult

log = logging.getLogger(__name__)

T = TypeVar("T")

ALIAS, ALIAS_BATCH = "/extract-features", "/extract-features-batch"
_CLOSE = {"Connection": "close"}  # the rest of the body is not read
_MAX_RESULT_BYTES = 1_000_000  # a stored vector has about 4 KB
_FILE = {"type": "string", "format": "binary"}
_NAMES = frozenset({"file", "files"})  # form fields of a batch
_BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": _FILE, "minItems": 1}},
                }
            }
        },
    }
}
_PROBLEMS = documented(
    ProblemCode.MISSING_FILE,
    ProblemCode.EMPTY_FILE,
    ProblemCode.FILE_TOO_LARGE,
    ProblemCode.UNSUPPORTED_FORMAT,
    ProblemCode.UPLOAD_TOO_SLOW,
    ProblemCode.CORRUPT_IMAGE,
    ProblemCode.RATE_LIMITED,
    ProblemCode.MODEL_UNAVAILABLE,
    ProblemCode.OVERLOADED,
    ProblemCode.DEPENDENCY_UNAVAILABLE,
)
_IMAGE_PROBLEMS = documented(ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.NO_VECTOR, ProblemCode.NOT_FINISHED)


@dataclass(frozen=True, slots=True)
class FeatureExtraction:
    """The feature extraction endpoints."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup
    batching: Batching[Any] | None  # None: this process has no CLIP

    def routes(self) -> Routes:
        """Return the routes, with the aliases that other services use."""
        routes = Routes(tags=["features"])
        for path in ("/api/v1/features", ALIAS):
            routes.add_api_route(
                path,
                self.one,
                methods=["POST"],
                dependencies=[requires(Scope.SEARCH)],
                summary="Extract the vector of an image" + (" (as /api/v1/features)" if path == ALIAS else ""),
                openapi_extra=_single_body(),
                responses=_PROBLEMS | _IMAGE_PROBLEMS,
            )
        for path in ("/api/v1/features/batch", ALIAS_BATCH):
            routes.add_api_route(
                path,
                self.several,
                methods=["POST"],
                dependencies=[requires(Scope.SEARCH)],
                summary="Extract the vectors of several images"
                + (" (as /api/v1/features/batch)" if path == ALIAS_BATCH else ""),
                openapi_extra=_BATCH_BODY,
                response_model_exclude_none=True,
                responses=_PROBLEMS | documented(ProblemCode.TOO_MANY_FILES, ProblemCode.NOTHING_ACCEPTED),
            )
        return routes

    async def one(self, request: Request, identity: Who) -> Features:
        """Send an image as a form or as the raw body, or JSON with the id of one of yours. Nothing is stored."""
        await _limits(request).take(request, identity, FEATURES)
        if media_type(request) == "application/json":
            return await self._stored(request, identity.owner)
        batching, model = await self._ready(identity)
        async with self._received(request, batching.settings.max_bytes) as path:
            began = time.monotonic()
            (vector,) = await _while_connected(request, self._vectors(batching, [path]))
        if isinstance(vector, Undecodable):
            raise _undecodable(vector)
        return Features(
            vector=tuple(vector), dimensions=len(vector), model=_model_view(model), duration_ms=_elapsed_ms(began)
        )

    async def several(self, request: Request, identity: Who) -> FeatureBatch:
        """Send images as a form, each as `file` or `files`. Unusable images are listed in `errors` and do not affect
        the others; if all are unusable, the response is 422. Each image counts against the rate limit."""
        batching, model = await self._ready(identity)
        own = batching.settings
        rules = Rules(
            frozenset(),
            own.max_bytes,
            self.settings.max_metadata_bytes,
            names=_NAMES,
            max_files=own.max_files,
            max_total_bytes=own.max_batch_bytes,
        )
        async with receive_files(request, self.settings, rules) as form:
            await _limits(request).take(request, identity, FEATURES, cost=len(form.files))
            began = time.monotonic()
            checked = [_checked(index, file) for index, file in enumerate(form.files)]
            good = [file for file in checked if isinstance(file, _BatchFile)]
            vectors = iter(await _while_connected(request, self._vectors(batching, [file.path for file in good])))
        answers = [file.item(next(vectors)) if isinstance(file, _BatchFile) else file for file in checked]
        items = tuple(one for one in answers if isinstance(one, FeatureItem))
        errors = tuple(one for one in answers if isinstance(one, FeatureError))
        if not items:
            reasons = tuple(
                ProblemItem(field=f"files[{one.index}]", detail=f"{one.code}: {one.detail}") for one in errors
            )
            raise Problem(ProblemCode.NOTHING_ACCEPTED, "No file has a vector; see `errors`.", reasons)
        return FeatureBatch(
            items=items,
            errors=errors,
            dimensions=len(items[0].vector),
            model=_model_view(model),
            duration_ms=_elapsed_ms(began),
        )

    async def _ready(self, identity: Identity) -> tuple[Batching[Any], ModelRef]:
        """Return the encoder and its model, before the body is read. Raises Problem."""
        retry = {"Retry-After": str(self.settings.retry_after_s), **_CLOSE}
        if self.batching is None:
            raise Problem(ProblemCode.MODEL_UNAVAILABLE, "This process has no CLIP model.", headers=_CLOSE)
        try:
            self.batching.check_room()
            return self.batching, await self.batching.model()
        except ModelUnavailable as error:
            detail = f"Vectors are unavailable: {model_reason(str(error), operator=identity.is_operator)}."
            raise Problem(ProblemCode.MODEL_UNAVAILABLE, detail, headers=retry) from None
        except Busy:
            raise self._overloaded() from None

    async def _vectors(self, batching: Batching[Any], paths: Sequence[Path]) -> list[list[float] | Undecodable]:
        try:
            return await batching.vectors(paths)
        except Busy:
            raise self._overloaded() from None
        except TimeoutError:
            raise self._overloaded("The vectors were not ready in time.") from None

    def _overloaded(self, why: str = "The limit of images in progress is reached.") -> Problem:
        return Problem(
            ProblemCode.OVERLOADED,
            f"{why} Retry after {self.settings.retry_after_s} s.",
            headers={"Retry-After": str(self.settings.retry_after_s), **_CLOSE},
        )

    @asynccontextmanager
    async def _received(self, request: Request, max_bytes: int) -> AsyncIterator[Path]:
        """Spool a request's image to disk until the block ends. Raises Problem."""
        kind = media_type(request)
        if kind == "multipart/form-data":
            async with receive_form(request, self.settings, allowed=frozenset(), max_bytes=max_bytes) as form:
                yield form.file.path
        elif kind.startswith("image/") or kind == "application/octet-stream":
            async with receive_file(request, self.settings, max_bytes=max_bytes) as file:
                yield file.ready().path
        else:
            detail = "The Content-Type must be multipart/form-data, image/*, application/octet-stream or JSON."
            raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail, headers=_CLOSE)

    async def _stored(self, request: Request, owner: Owner) -> Features:
        """Return the vector that the embedder has stored for an image."""
        began = time.monotonic()
        requested = await read_json(request, FeaturesOf, self.settings)
        record = await self.lookup.image(requested.image_id, owner)
        stage = record.stages.get("embedder")
        if stage is None or stage.state is not StageState.DONE or stage.result is None:
            raise _no_vector()
        if not is_below(results_prefix(owner), stage.result.key):  # a record written before events were checked
            raise _no_vector()
        try:
            raw = await bounded(
                self.files.get(stage.result.key, limit=_MAX_RESULT_BYTES), self.settings.storage_timeout_s
            )
            found = ImageEmbedding.model_validate(StoredResult.model_validate_json(raw).result)
        except (ObjectMissing, ValidationError) as error:
            log.warning(
                "stored vector is missing or invalid", extra={"image_id": record.image_id, "error": repr(error)}
            )
            raise _no_vector() from None
        vector = tuple(found.vector.values())
        return Features(
            vector=vector, dimensions=len(vector), model=_model_view(found.model), duration_ms=_elapsed_ms(began)
        )


@dataclass(frozen=True, slots=True)
class _BatchFile:
    """A received image of a batch."""

    index: int
    filename: str | None
    path: Path

    def item(self, vector: list[float] | Undecodable) -> FeatureItem | FeatureError:
        """Return the image's vector or error in the response."""
        if isinstance(vector, Undecodable):
            return FeatureError(index=self.index, filename=self.filename, code=vector.code, detail=vector.message)
        return FeatureItem(index=self.index, filename=self.filename, vector=tuple(vector))


def _checked(index: int, file: Arriving) -> _BatchFile | FeatureError:
    try:
        ready = file.ready()
    except Problem as problem:
        return FeatureError(index=index, filename=file.filename, code=problem.code, detail=problem.detail)
    return _BatchFile(index, ready.filename, ready.path)


def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work and cancel it when the client disconnects. Raises Problem then."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(ProblemCode.BAD_REQUEST, "The client disconnected before the response.", headers=_CLOSE)
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _undecodable(error: Undecodable) -> Problem:
    """Return the problem of an undecodable image, with the error's code where HTTP has the same one."""
    known = set(ProblemCode)
    code = ProblemCode(error.code.value) if error.code.value in known else ProblemCode.CORRUPT_IMAGE
    return Problem(code, error.message)


def _no_vector() -> Problem:
    return Problem(ProblemCode.NO_VECTOR, "The image has no vector: the embedder is not done, or was skipped.")


def _model_view(model: ModelRef) -> FeatureModel:
    return FeatureModel(name=model.name, weights_sha256=model.sha256, backend=model.backend)


def _elapsed_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _single_body() -> dict[str, Any]:
    """Return the OpenAPI description of a request with one image."""
    body = described(FeaturesOf)
    body["requestBody"]["content"] |= {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE}}},
        "application/octet-stream": {"schema": _FILE},
        "image/*": {"schema": _FILE},
    }
    return body
