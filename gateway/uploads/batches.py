"""Batches: many images in one request, each accepted or rejected individually.

A batch is a form with many files, or one zip archive. 202: all accepted; 207: some rejected, with a status per file.
When all are rejected, the response is a problem: their common one, or `nothing-accepted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.digests import DIGEST_PARAMETER
from gateway.http.problems import TITLES, Problem, documented, unavailable
from gateway.http.spool_space import SPACE
from gateway.http.spooling import room
from gateway.limits.rate_limits import UPLOADS, Limits
from gateway.settings import GatewaySettings
from gateway.uploads.batch_contents import ITEMS, ZIP_TYPES, Batch, Item, details_of, receive_batch
from gateway.uploads.idempotency import KEY_PARAMETER, REPLAYED, Answer, Work, read_key
from gateway.uploads.submission import FORM_REFUSALS, REFUSALS, Submission
from gateway.uploads.submission_fields import FIELD_SCHEMAS, JSON_FIELDS, Details, query_parameters
from schemas.http.batches import BatchItem, BatchRefusal, BatchSubmitted
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.values import ImageId, Owner

_CONCURRENCY = 4  # files of one batch accepted in parallel
_JSON = {"contentType": "application/json"}
_BINARY = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {
            "type": "array",
            "items": _BINARY,
            "minItems": 1,
            "maxItems": 100,
            "description": "the images, or one zip archive of them; `files` is an alias",
        },
        "files": {"type": "array", "items": _BINARY, "maxItems": 50, "description": "alias of `file`"},
        **FIELD_SCHEMAS,
        ITEMS: {
            "type": "string",
            "description": "fields of single files, which override those of the batch: a JSON list in the files' order "
            "(null = none), or an object by file name, in an archive by the whole path. Per file: bucket, metadata, "
            "tags, category",
            "examples": ['{"cat.jpg": {"tags": ["cat"], "metadata": {"album": "pets"}}}'],
        },
    },
}
_DESCRIPTION: dict[str, Any] = {
    "parameters": [
        KEY_PARAMETER,
        DIGEST_PARAMETER,
        *query_parameters("for an archive as the request body"),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _FORM,
                "encoding": dict.fromkeys((*JSON_FIELDS, ITEMS), _JSON),
            },
            ZIP_TYPES[0]: {"schema": _BINARY},
        },
    },
}

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": BatchSubmitted, "description": "all are existing images of yours"},
    207: {"model": BatchSubmitted, "description": "some were accepted, some rejected"},
}


@dataclass(slots=True)
class _Run:
    """One attempt to accept a batch."""

    request: Request
    owner: Owner
    again: bool
    aborted: bool = False  # a dependency is unavailable


@dataclass(frozen=True, slots=True)
class Batches:
    """The endpoint that accepts many images in one request."""

    settings: GatewaySettings
    submission: Submission
    limits: Limits

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["ingest"])
        routes.add_api_route(
            "/batch",
            self.upload,
            methods=["POST"],
            status_code=202,
            operation_id="upload_batch",
            dependencies=[requires(Scope.WRITE)],
            summary="Upload many images",
            response_model=BatchSubmitted,
            openapi_extra=_DESCRIPTION,
            responses=_RESPONSES
            | documented(
                ProblemCode.BAD_REQUEST,
                *FORM_REFUSALS,
                ProblemCode.TOO_MANY_FILES,
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                ProblemCode.INVALID_ARCHIVE,
                ProblemCode.NOTHING_ACCEPTED,
                *REFUSALS,
            ),
        )
        return routes

    async def upload(self, request: Request, identity: Who) -> Response:
        """Accept each file individually. 202: all; 207: see each status. A retry with the same key continues."""
        read_key(request)  # rejects an invalid key before the body is read
        await self.limits.take(request, identity, UPLOADS)
        async with receive_batch(request, self.settings) as batch:
            details = details_of(batch, max_metadata_bytes=self.settings.max_metadata_bytes)
            if len(batch.items) > 1:
                await self.limits.take(request, identity, UPLOADS, cost=len(batch.items) - 1)
            answer = await self._accept(request, identity.owner, batch, details)
        headers = {REPLAYED: "true"} if answer.replayed else {}
        if answer.replayed:
            await self.limits.refund(request.scope, UPLOADS)
        return JSONResponse(answer.body.model_dump(mode="json", exclude_none=True), answer.status, headers)

    async def _accept(
        self, request: Request, owner: Owner, batch: Batch, details: Sequence[Details]
    ) -> Answer[BatchSubmitted]:
        payload = {
            "files": batch.hashes,
            "names": [item.name for item in batch.items],
            "details": [one.non_default_fields() for one in details],
        }

        async def work(given: Work) -> Answer[BatchSubmitted]:
            gate, run = asyncio.Semaphore(_CONCURRENCY), _Run(request, owner, given.again)

            async def one(index: int, image_id: ImageId) -> BatchItem:
                async with gate:
                    return await self._item(run, index, batch.items[index], details[index], image_id)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(index, found)) for index, found in enumerate(given.image_ids)]
            return _answer([task.result() for task in tasks], self.settings.retry_after_s)

        return await self.submission.idempotency.once(
            request, owner, payload, BatchSubmitted, work, images=len(batch.items)
        )

    async def _item(self, run: _Run, index: int, item: Item, details: Details, image_id: ImageId) -> BatchItem:
        """Accept one file; a problem rejects this file only. After the first 503 the other files are not tried."""
        known = BatchItem(index=index, filename=_printable(item.name), status=202)
        try:
            if run.aborted:
                raise unavailable("A dependency", retry_after_s=self.settings.retry_after_s)
            with room(self.settings):
                file = await asyncio.to_thread(item.ready)
            known = known.model_copy(update={"sha256": file.sha256})
            try:
                answer = await self.submission.accept(run.request, run.owner, file, details, image_id, again=run.again)
            finally:
                SPACE.remove(file.path)
        except Problem as problem:
            run.aborted = run.aborted or problem.code is ProblemCode.DEPENDENCY_UNAVAILABLE
            refusal = BatchRefusal(code=problem.code, title=TITLES[problem.code][1], detail=problem.detail)
            return known.model_copy(update={"status": problem.status, "error": refusal})
        return known.model_copy(update={"status": answer.status, "accepted": answer.body})


def _answer(items: Sequence[BatchItem], retry_after_s: int) -> Answer[BatchSubmitted]:
    """Return the answer to a batch. Raises Problem when no file was accepted."""
    refused = [item for item in items if item.error is not None]
    if len(refused) == len(items):
        raise _all_rejected(refused, retry_after_s)
    statuses = {item.status for item in items}
    status = 207 if refused else max(statuses)
    body = BatchSubmitted(accepted=len(items) - len(refused), refused=len(refused), items=tuple(items))
    # After a 5xx of a file the batch may be retried with the same key.
    return Answer(status, body, final=not any(found >= 500 for found in statuses))


def _all_rejected(items: Sequence[BatchItem], retry_after_s: int) -> Problem:
    reasons = {item.error.code: item.error for item in items if item.error is not None}
    named = tuple(
        ProblemItem(field=item.filename or f"files.{item.index}", detail=f"{item.error.code}: {item.error.detail}")
        for item in items
        if item.error is not None
    )
    if len(reasons) == 1:
        (reason,) = reasons.values()
        code = ProblemCode(reason.code)
        again = {"Retry-After": str(retry_after_s)} if code is ProblemCode.DEPENDENCY_UNAVAILABLE else {}
        return Problem(code, reason.detail, named, headers=again)
    return Problem(ProblemCode.NOTHING_ACCEPTED, "All files of the batch were rejected; see `errors`.", named)


def _printable(name: str | None) -> str | None:
    """Return a file name for the response, with an archive member's folders: printable characters, 255 at most."""
    if name is None:
        return None
    return "".join(letter for letter in name if letter.isprintable())[:255] or None
