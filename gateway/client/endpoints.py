"""The endpoint table: every method of both clients that is one request. A new method is one entry of `Endpoints`."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, overload
from urllib.parse import quote

from pydantic import JsonValue

from gateway.client.exchange import Answer, Request
from schemas.http.health import Health
from schemas.http.images import ImageBatch, ImageDetails, ImagePage, ImageSizes
from schemas.http.jobs import JobResult, JobStatus, TextFormat, TextView
from schemas.http.search import SearchAnswer
from schemas.http.submissions import DeletionSubmitted, ErasureView, ProfileRequest, Submitted
from schemas.values import Lane

P = ParamSpec("P")

Source = str | Path | bytes
"""An image: a path, its bytes, or (a str that begins with http:// or https://) a URL to fetch."""

OnDuplicate = Literal["new", "reuse"]
"""What happens to bytes you have submitted before."""

API = "/api/v1"


class Blocking(Protocol):
    """A client whose methods return answers."""

    def _ask(self, build: Callable[[], Request], answer: type[Answer]) -> Answer: ...


class Asynchronous(Protocol):
    """A client whose methods return coroutines."""

    async def _ask(self, build: Callable[[], Request], answer: type[Answer]) -> Answer: ...


class Endpoint(Generic[P, Answer]):
    """A client method of one request: `build` has its signature and docstring, and makes the request."""

    def __init__(self, build: Callable[P, Request], answer: type[Answer]) -> None:
        """Make the method that sends what `build` returns and reads the response as `answer`."""

        @wraps(build)
        def method(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client._ask(partial(build, *args, **kwargs), answer)

        signature = inspect.signature(build)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[itself, *signature.parameters.values()], return_annotation=answer
        )
        method.__annotations__ = {**method.__annotations__, "return": answer}
        self._method = method

    @overload
    def __get__(self, client: None, owner: object) -> Callable[Concatenate[Any, P], Any]: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, Answer]: ...
    @overload
    def __get__(self, client: Asynchronous, owner: object) -> Callable[P, Coroutine[Any, Any, Answer]]: ...
    def __get__(self, client: object, owner: object) -> Callable[..., Any]:
        """Return the method, bound to the client."""
        return self._method if client is None else MethodType(self._method, client)


def endpoint(answer: type[Answer]) -> Callable[[Callable[P, Request]], Endpoint[P, Answer]]:
    """Return the decorator of an entry whose response is read as this model, or as bytes."""
    return partial(Endpoint, answer=answer)


class Endpoints:
    """The table: each entry builds the request of one method."""

    @endpoint(Submitted)
    @staticmethod
    def submit(
        source: Source,
        *,
        bucket: str = "default",
        metadata: Mapping[str, JsonValue] | None = None,
        filename: str | None = None,
        lane: Lane = Lane.INTERACTIVE,
        on_duplicate: OnDuplicate = "new",
        profile: ProfileRequest | None = None,
        idempotency_key: str | None = None,
    ) -> Request:
        """Upload an image, or submit a URL to fetch. Once this returns, the image is processed to its final state.

        The bulk lane yields to interactive images; the server moves very many interactive images a minute there too.
        With `on_duplicate="reuse"` the answer is the image that the same bytes were made into before, if there is one.
        A `profile` chooses the stages that process the image, and their parameters.
        For a submission that is retried after a crash, pass the same `idempotency_key` again. Raises ValueError.
        """
        key = idempotency_key or str(uuid.uuid4())
        lanes = {"lane": lane} if lane is Lane.BULK else {}  # servers without lanes accept interactive submissions
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            if on_duplicate == "reuse":
                raise ValueError("The bytes of a URL are unknown before they are fetched: only uploads can be reused.")
            fetch = {"url": source, "bucket": bucket, "metadata": dict(metadata or {}), **lanes}
            fetch |= {"profile": profile.model_dump(mode="json")} if profile is not None else {}
            return Request("POST", f"{API}/images/fetch", json=fetch, key=key)
        form = {"bucket": bucket, "metadata": json.dumps(dict(metadata or {})), **lanes}
        form |= {"on_duplicate": on_duplicate} if on_duplicate == "reuse" else {}
        form |= {"profile": profile.model_dump_json()} if profile is not None else {}
        file = source if isinstance(source, bytes) else Path(source)
        name = filename or (file.name if isinstance(file, Path) else None)
        return Request("POST", f"{API}/images/upload", file=file, filename=name, form=form, key=key)

    @endpoint(JobStatus)
    @staticmethod
    def status(job_id: str) -> Request:
        """Return the state of a job."""
        return _job(job_id)

    @endpoint(JobResult)
    @staticmethod
    def result(job_id: str) -> Request:
        """Return the result of a job. Refused with `not-finished` until it has ended."""
        return _job(job_id, "/result")

    @endpoint(ImageSizes)
    @staticmethod
    def sizes(image_id: str) -> Request:
        """Return every size of an image."""
        return _image(image_id, "/all")

    @endpoint(ImageBatch)
    @staticmethod
    def batch(image_ids: list[str], *, size: str = "medium") -> Request:
        """Return up to 50 images in one size, and why others are missing."""
        return _image("batch", size=size, image_ids=",".join(image_ids))

    @endpoint(SearchAnswer)
    @staticmethod
    def search(query: str, *, limit: int | None = None, min_similarity: float | None = None) -> Request:
        """Find images by meaning, of at least that cosine to the query, and by words; `"exact phrases"` in quotes."""
        return Request("GET", f"{API}/search", {"q": query} | _search_options(limit, min_similarity))

    @endpoint(SearchAnswer)
    @staticmethod
    def search_like(image: Source, *, limit: int | None = None, min_similarity: float | None = None) -> Request:
        """Find images similar to one, of at least that cosine to it: an image id, a path, or bytes."""
        path, options = f"{API}/search/image", _search_options(limit, min_similarity)
        if isinstance(image, str) and not Path(image).is_file():
            return Request("POST", path, json={"image_id": image} | options)
        file = image if isinstance(image, bytes) else Path(image)
        form = {name: str(value) for name, value in options.items()}
        return Request("POST", path, file=file, filename="query", form=form)

    @endpoint(ImagePage)
    @staticmethod
    def images(*, page_size: int | None = None, cursor: str | None = None, **filters: Any) -> Request:
        """Return a page of your images, newest first; the next one with its `next_cursor` and the same filters.

        Filters: state, bucket, label, tag, category, since, until, text, order.
        """
        params = {**filters, "page_size": page_size, "cursor": cursor}
        return Request("GET", f"{API}/images", {name: value for name, value in params.items() if value is not None})

    @endpoint(ImageDetails)
    @staticmethod
    def details(image_id: str) -> Request:
        """Return everything recorded about an image."""
        return _image(image_id, "/metadata")

    @endpoint(ImageDetails)
    @staticmethod
    def annotate(image_id: str, **changes: Any) -> Request:
        """Change tags, category or context: `annotate(image_id, tags=["beach"], category=None)`. None removes."""
        return Request("PATCH", _image(image_id).path, json=changes)

    @endpoint(DeletionSubmitted)
    @staticmethod
    def delete(image_id: str) -> Request:
        """Delete an image: hidden when this returns, removed when the job has ended."""
        return Request("DELETE", _image(image_id).path)

    @endpoint(ErasureView)
    @staticmethod
    def erasure(image_id: str) -> Request:
        """Return what a deletion has removed, and what is still stored of the image right now."""
        return _image(image_id, "/erasure")

    @endpoint(TextView)
    @staticmethod
    def text(image_id: str) -> Request:
        """Return the text of an image with its boxes. Refused with `not-finished` until it is read."""
        return _image(image_id, "/text")

    @endpoint(bytes)
    @staticmethod
    def text_as(image_id: str, format: TextFormat) -> Request:  # noqa: A002 - the parameter's name
        """Return the text of an image as plain text, hOCR, ALTO XML or a PDF with searchable text."""
        return _image(image_id, "/text", format=format)

    @endpoint(bytes)
    @staticmethod
    def download(image_id: str, *, size: str = "medium") -> Request:
        """Return the bytes of one size; from the object store itself, where the server links to it."""
        return _image(image_id, "/direct", size=size)

    @endpoint(Health)
    @staticmethod
    def health() -> Request:
        """Return the state of the system and its parts."""
        return Request("GET", f"{API}/health")


def _job(job_id: str, end: str = "") -> Request:
    return Request("GET", f"{API}/images/jobs/{quote(job_id, safe='')}{end}")


def _search_options(limit: int | None, min_similarity: float | None) -> dict[str, Any]:
    options = {"limit": limit or None, "min_similarity": min_similarity}
    return {name: value for name, value in options.items() if value is not None}


def _image(image_id: str, end: str = "", **params: str) -> Request:
    return Request("GET", f"{API}/images/{quote(image_id, safe='')}{end}", params)
