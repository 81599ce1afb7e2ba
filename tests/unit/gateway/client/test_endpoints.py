"""The endpoint table: each entry is a documented, typed method of both clients."""

from __future__ import annotations

import inspect
import pydoc
import typing

import httpx
import pytest

from gateway.client import AsyncDarkroom, Darkroom
from gateway.client.endpoints import Endpoint, Endpoints
from schemas.http.jobs import JobStatus
from schemas.values import ImageState
from tests.support.gateway_components import BASE

ENTRIES = [name for name, value in vars(Endpoints).items() if isinstance(value, Endpoint)]


def serve(request: httpx.Request) -> httpx.Response:
    """Answer the status of the requested job."""
    assert (request.method, request.url.path) == ("GET", "/api/v1/images/jobs/i.1")
    body = {"job_id": "i.1", "image_id": "i", "generation": 1, "status": "completed", "status_url": "s", "stages": {}}
    return httpx.Response(200, json=body)


@pytest.mark.parametrize("client", [Darkroom, AsyncDarkroom])
@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_a_documented_method_of_both_clients(client: type, name: str) -> None:
    """help() shows each entry as a method with its parameters, the model it returns and its docstring."""
    method = getattr(client, name)
    signature = inspect.signature(method)
    assert next(iter(signature.parameters)) == "self"
    assert typing.get_type_hints(method)["return"] is signature.return_annotation
    shown = pydoc.plain(pydoc.render_doc(client))
    assert f"{name}(self" in shown
    assert (inspect.getdoc(method) or "").splitlines()[0] in shown


async def test_both_clients_send_the_request_of_an_entry() -> None:
    """One entry is a blocking method of one client and a coroutine of the other, with the same answer."""
    with Darkroom(BASE, transport=httpx.MockTransport(serve)) as client:
        answer = client.status("i.1")
        assert client.status(job_id="i.1") == answer
        with pytest.raises(TypeError):
            client.status("i.1", timeout=3)  # type: ignore[call-arg]
    async with AsyncDarkroom(BASE, transport=httpx.MockTransport(serve)) as other:
        assert await other.status("i.1") == answer
    assert isinstance(answer, JobStatus)
    assert answer.status is ImageState.COMPLETED


@pytest.mark.parametrize(
    ("options", "sent"),
    [({}, {}), ({"limit": 3}, {"limit": 3}), ({"min_similarity": 0}, {"min_similarity": 0})],
)
def test_a_search_sends_the_options_that_are_given(options: dict[str, float], sent: dict[str, float]) -> None:
    """Limit and minimum similarity are parameters, JSON or a form, and absent by default."""
    build_words, build_like = (inspect.unwrap(getattr(Darkroom, name)) for name in ("search", "search_like"))
    words, by_id, by_bytes = build_words("cat", **options), build_like("an-id", **options), build_like(b"x", **options)
    assert words.params == {"q": "cat", **sent}
    assert by_id.json == {"image_id": "an-id", **sent}
    assert by_bytes.form == {name: str(value) for name, value in sent.items()}
