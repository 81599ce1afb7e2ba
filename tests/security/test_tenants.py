"""Isolation of owners: another owner's id gets the response of an unknown id, in body, headers and work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from agents.indexing.record_facts import conclude, record
from gateway.access.authenticator import open_authenticator
from gateway.access.identity import Scope
from gateway.access.settings import AuthSettings
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.operations.settings import StatisticsSettings
from gateway.operations.statistics_cache import open_statistics_cache
from gateway.upload_sessions.store import UploadKind, Uploads
from schemas.values import ImageState, ObjectRef, Owner, Rendition, StageState, job_id_of, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.security.authenticated_gateway import HERE, secret_pair, token, trusting
from tests.support.facts import Facts
from tests.support.gateway_components import JPEG, UPLOAD, Encoder, Sink, StubReadiness, refused, settings, unit_vector
from tests.support.permissions import PERMISSIONS
from tests.support.read_models import merge
from tests.support.server_sent_events import MemoryFeed

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one gateway for all tests

IMAGES = "/api/v1/images"
SHARED = secret_pair("hs-1")
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
ALL = f"{Scope.WRITE} {Scope.READ} {Scope.SEARCH}"

# What a request needs beside the id to be looked up.
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", f"{IMAGES}/{{image_id}}"): {"json": {"tags": ["mine"]}},
    ("HEAD", "/api/v1/uploads/{upload_id}"): {"headers": TUS},
    ("DELETE", "/api/v1/uploads/{upload_id}"): {"headers": TUS},
    ("POST", "/api/v1/uploads/{upload_id}"): {
        "headers": {**TUS, **PIECE, "X-HTTP-Method-Override": "PATCH"},
        "content": b"mine",
    },
    ("PATCH", "/api/v1/uploads/{upload_id}"): {
        "headers": {**TUS, **PIECE},
        "content": b"mine",
    },
}
OF_OWNERS = [
    row for row, scope in PERMISSIONS.items() if scope not in (None, Scope.ADMIN) and re.search(r"\{\w+\}", row[1])
]


class Counting:
    """Forwards calls to a store or read model, and records them."""

    def __init__(self, inner: Any, calls: list[str]) -> None:
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def passed_on(*args: Any, **named: Any) -> Any:
            self._calls.append(f"{type(self._inner).__name__}.{name}")
            return found(*args, **named)

        return passed_on


class EmptyLog:
    """A log without events or listeners."""

    behind = False

    async def look(self) -> None:
        pass

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        return {}

    async def waiting(self, agent: str) -> int:
        return 0


@dataclass
class Tenants:
    """A gateway with two owners: anna has one of everything, bert has nothing."""

    files: FileStore
    read_model: ReadModel
    client: httpx.AsyncClient
    sink: Sink
    calls: list[str]
    images: dict[str, str] = field(default_factory=dict)  # state -> id
    uploads: dict[str, str] = field(default_factory=dict)

    async def ask(self, owner: str, method: str, path: str, **needed: Any) -> httpx.Response:
        """Ask as an owner."""
        headers = {"Authorization": f"Bearer {token(SHARED, owner=owner, scope=ALL)}", **needed.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **needed)

    async def settle(self) -> None:
        """Let anna have an image in each of its states, and uploads that have not ended."""
        for stands in ("accepted", "erased", "long erased", "leaving", "completed"):
            answer = await self.ask("anna", "POST", UPLOAD, files={"file": ("cat.jpg", JPEG + stands.encode())})
            assert answer.status_code == 202, answer.text
            self.images[stands] = answer.json()["image_id"]
        for stands in ("completed", "leaving", "erased"):
            await self._complete(self.images[stands])
        for stands in ("leaving", "erased"):
            answer = await self.ask("anna", "DELETE", f"{IMAGES}/{self.images[stands]}")
            assert answer.status_code == 202, answer.text
        await self.read_model.write_tombstone(self.images["erased"], "anna", 2)
        erasures = Tombstones(self.files)
        await erasures.request(self.images["long erased"], "anna", 2)
        certain = await erasures.make_certain(self.images["long erased"], "anna", 2)
        assert certain is not None
        await erasures.update(certain.model_copy(update={"erased_at": certain.certain_at}))
        uploads = Uploads(settings(), self.files)
        for kind in UploadKind:
            begun = uploads.new(Owner("anna"), kind, **({"length": 10} if kind is UploadKind.RESUMABLE else {}))
            await uploads.begin(begun)
            self.uploads[kind] = begun.upload_id

    async def _complete(self, image_id: str) -> None:
        for fact in Facts(image_id, owner="anna").all():
            known = await record(fact, self.read_model, Tombstones(self.files))
            if known is not None:
                await conclude(fact, known, self.read_model)
        data = b"a thumbnail"
        stored = await self.files.put(image_key(image_id, 1, "medium.webp"), data, content_type="image/webp")
        size = Rendition(name="medium", object=stored, width=15, height=10, aspect_ratio=1.5, format="webp")
        result = ObjectRef(bucket="darkroom", key="results/none", sha256="0" * 64, size=1)
        done = StageRecord(state=StageState.DONE, version="1", result=result)
        await merge(
            self.read_model,
            image_id,
            1,
            {
                "state": ImageState.COMPLETED.value,
                "renditions": [size.model_dump(mode="json")],
                "text": "hello",
                "labels": ["cat"],
            },
            stages={"ocr": done},
            vector=unit_vector(0),
        )

    def of_anna(self, name: str) -> dict[str, str]:
        """Return what of anna's the parameter of a path can name, by how it stands."""
        named: dict[str, dict[str, str]] = {
            "image_id": self.images,
            "job_id": {stands: job_id_of(image_id, 1) for stands, image_id in self.images.items()},
            "upload_id": self.uploads,
            "sha256": {stands: hashlib.sha256(JPEG + stands.encode()).hexdigest() for stands in self.images},
        }
        return named[name]

    async def stored(self) -> dict[str, str]:
        """Return everything in the store, by its ETag."""
        kinds = ["originals", "claims", "jobs", "images", "results", "erasures", "deletions", "uploads", "idempotency"]
        return {info.key: info.etag for kind in kinds async for info in self.files.list(f"{kind}/")}


def unknown_value(name: str) -> str:
    """Return a value of a path parameter that unknown_value existed."""
    unknown = {"job_id": job_id_of(new_image_id(), 1), "sha256": "0" * 64}
    return unknown.get(name, new_image_id())


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Tenants]:
    """Open the gateway, and submit anna's images."""
    own, calls, sink = settings(), list[str](), Sink()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_files(FilesSettings(directory=folder / "objects")))
        read_model = await stack.enter_async_context(open_read_model(QdrantSettings(path=folder / "qdrant")))
        door = await open_authenticator(own, AuthSettings.model_validate(trusting(SHARED)), store)
        parts = QueryComponents(
            files=Counting(store, calls),
            events=sink,
            read_model=Counting(read_model, calls),
            encoder=Encoder(),
            readiness=StubReadiness(),
            authenticator=door,
            live=MemoryFeed(),
            numbers=await stack.enter_async_context(
                open_statistics_cache(StatisticsSettings(), store, read_model, EmptyLog(), EmptyLog())
            ),
        )
        transport = httpx.ASGITransport(app=embedded_app(own, parts), raise_app_exceptions=False)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=HERE))
        found = Tenants(store, read_model, client, sink, calls)
        await found.settle()
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    """Return one gateway for all tests: nothing that bert does changes what anna has."""
    async with opened(tmp_path_factory.mktemp("tenants")) as found:
        yield found


@dataclass(frozen=True)
class Answered:
    """Everything that a response, and the work for it, could disclose."""

    status: int
    body: str
    headers: Mapping[str, str]
    calls: tuple[str, ...]


async def response_to_bert(tenants: Tenants, method: str, path: str, known: str, **needed: Any) -> Answered:
    """Return bert's response, with the names from the request removed."""
    tenants.calls.clear()
    answer = await tenants.ask("bert", method, path, **needed)
    body = answer.text
    for word in (known, known.partition(".")[0], answer.headers["x-correlation-id"]):
        body = body.replace(word, "…")
    headers = {name: value for name, value in answer.headers.items() if name != "x-correlation-id"}
    return Answered(answer.status_code, body, headers, tuple(sorted(tenants.calls)))


@pytest.mark.parametrize(("method", "path"), OF_OWNERS, ids=lambda part: part.removeprefix("/api/v1"))
async def test_another_owners_id_is_unknown(tenants: Tenants, method: str, path: str) -> None:
    """For every id of anna's, in every state, bert gets the response and the work of an unknown id."""
    (name,) = re.findall(r"\{(\w+)\}", path)
    needed = NEEDED.get((method, path), {})
    unknown = unknown_value(name)
    nothing = await response_to_bert(tenants, method, path.replace(f"{{{name}}}", unknown), unknown, **needed)
    assert nothing.status == 404
    before, sent = await tenants.stored(), len(tenants.sink.sent)
    for state, known in tenants.of_anna(name).items():
        assert (
            await response_to_bert(tenants, method, path.replace(f"{{{name}}}", known), known, **needed) == nothing
        ), state
    assert (await tenants.stored(), len(tenants.sink.sent)) == (before, sent)


async def test_the_owner_gets_another_response(tmp_path: Path) -> None:
    """At each of these endpoints anna gets another response: what bert was denied exists."""
    kept = [row for row in OF_OWNERS if row[0] != "DELETE"]
    for number, rows in enumerate([kept, *([row] for row in OF_OWNERS if row not in kept)]):
        async with opened(tmp_path / str(number)) as tenants:
            for method, path in rows:
                assert await owner_sees_it(tenants, method, path), (method, path)


async def owner_sees_it(tenants: Tenants, method: str, path: str) -> bool:
    """Return whether anna gets anything of hers."""
    (name,) = re.findall(r"\{(\w+)\}", path)
    for known in reversed(tenants.of_anna(name).values()):
        answer = await tenants.ask("anna", method, path.replace(f"{{{name}}}", known), **NEEDED.get((method, path), {}))
        if answer.status_code not in (404, 405):
            return True
    return False


async def test_malformed_ids_are_unknown(tenants: Tenants) -> None:
    """Malformed ids get the response of unknown ids at every endpoint."""
    for method, path in OF_OWNERS:
        (name,) = re.findall(r"\{(\w+)\}", path)
        known = next(iter(tenants.of_anna(name).values()))
        odd = [f"{known}%0A", f"%20{known}", f"{known}.1", "..%2F..%2Fetc%2Fpasswd", "%2e%2e", "%00", "%F0%9F%98%80"]
        for given in (*odd, "x" * 3000, "*", "*.1", "-1"):
            where = path.replace(f"{{{name}}}", given)
            answer = await tenants.ask("anna", method, where, **NEEDED.get((method, path), {}))
            assert answer.status_code in (400, 404, 405, 422), (method, where, answer.status_code, answer.text)


async def test_a_batch_discloses_no_other_owners_images(tenants: Tenants) -> None:
    """In a batch, another owner's images are the same errors as unknown ones."""
    for known in tenants.images.values():
        unknown = new_image_id()
        tenants.calls.clear()
        nothing = await tenants.ask("bert", "GET", f"{IMAGES}/batch", params={"image_ids": unknown})
        cost = sorted(tenants.calls)
        tenants.calls.clear()
        answer = await tenants.ask("bert", "GET", f"{IMAGES}/batch", params={"image_ids": known})
        assert answer.text.replace(known, "") == nothing.text.replace(unknown, "")
        assert sorted(tenants.calls) == cost
        assert not answer.json()["images"]


async def test_similarity_discloses_no_other_owners_images(tenants: Tenants) -> None:
    """A search by another owner's image is a search by an unknown one."""
    unknown = new_image_id()
    path = "/api/v1/search/image"
    nothing = await response_to_bert(tenants, "POST", path, unknown, json={"image_id": unknown})
    assert nothing.status == 404
    for known in tenants.images.values():
        assert await response_to_bert(tenants, "POST", path, known, json={"image_id": known}) == nothing


LISTS = {
    "words": ("GET", "/api/v1/search", {"params": {"q": "cat"}}),
    "likeness": ("POST", "/api/v1/search/image", {"files": {"file": ("q.jpg", JPEG)}}),
    "list": ("GET", IMAGES, {}),
    "list by label": ("GET", IMAGES, {"params": {"label": "cat"}}),
    "failures": ("GET", "/api/v1/health/failed", {}),
}


@pytest.mark.parametrize(("method", "path", "needed"), LISTS.values(), ids=LISTS)
async def test_lists_and_searches_are_of_the_owner(
    tenants: Tenants, method: str, path: str, needed: dict[str, Any]
) -> None:
    """Bert's lists and searches are empty, whatever anna has."""
    if path != "/api/v1/health/failed":
        assert tenants.images["completed"] in (await tenants.ask("anna", method, path, **needed)).text
    answer = await tenants.ask("bert", method, path, **needed)
    assert answer.status_code == 200, answer.text
    for text in (*tenants.images.values(), "anna", "hello w"):
        assert text not in answer.text.lower()


async def test_counts_are_of_the_owner(tenants: Tenants) -> None:
    """Counts of images are of the caller's owner only."""
    path = "/api/v1/health/stats"
    counts = {owner: (await tenants.ask(owner, "GET", path)).json()["images"] for owner in ("anna", "bert", "carl")}
    assert sum(counts["anna"].values()) > 0
    assert sum(counts["bert"].values()) == sum(counts["carl"].values()) == 0


@pytest.mark.parametrize("path", ["/api/v1/health/stats", "/api/v1/health/failed"])
async def test_only_operators_see_all_owners(tenants: Tenants, path: str) -> None:
    """Results of all owners require the scope `admin`."""
    refused(await tenants.ask("bert", "GET", path, params={"everybody": "true"}), 403, "forbidden")


async def test_the_same_bytes_of_another_owner_are_new(tenants: Tenants) -> None:
    """Bytes that anna has are new when bert sends them, also with `on_duplicate=reuse`."""
    file = {"file": ("cat.jpg", JPEG + b"completed")}
    answer = await tenants.ask("bert", "POST", UPLOAD, files=file, data={"on_duplicate": "reuse"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["image_id"] not in tenants.images.values()


async def test_idempotency_keys_are_by_owner(tenants: Tenants) -> None:
    """An Idempotency-Key that anna used is available to bert."""
    again = {"headers": {"Idempotency-Key": '"the-same"'}, "files": {"file": ("cat.jpg", JPEG)}}
    first, other = [await tenants.ask(owner, "POST", UPLOAD, **again) for owner in ("anna", "bert")]
    assert (first.status_code, other.status_code) == (202, 202)
    assert first.json()["image_id"] != other.json()["image_id"]


async def test_an_event_stream_is_of_the_owner(tenants: Tenants) -> None:
    """Bert's event stream contains nothing about anna's images, not even a count."""
    feed = MemoryFeed()
    async with feed.subscribe("bert") as bert, feed.subscribe("anna") as anna:
        for fact in Facts(tenants.images["accepted"], owner="anna").all():
            feed.append(fact)
        heard = await anna.next(20)
        assert heard is not None
        assert heard.what.image_id == tenants.images["accepted"]
        assert await bert.next(0.01) is None
