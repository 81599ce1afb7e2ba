"""Annotations over HTTP, in the log, in the read model, and after a replay of the log."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from agents.stages.indexer import Tools, index
from gateway.access.identity import ANONYMOUS
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.images.annotations import MERGE_PATCH, merge_patch
from gateway.images.revisions import Revisions
from gateway.limits.rate_limits import CHANGES, open_limits
from gateway.limits.settings import RateLimitSettings
from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, ImageAnnotated
from schemas.values import DEFAULT_OWNER, new_image_id
from streams import topics
from streams.errors import DeliveryUnconfirmed
from streams.object_store.factory import open_files
from streams.object_store.keys import image_prefix
from streams.object_store.protocol import FileStore
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from streams.topics import Topic
from tests.support.facts import Facts
from tests.support.gateway_components import JPEG, UPLOAD, Sink, StubReadiness, client_of, refused, settings

IMAGES = "/api/v1/images"


@dataclass
class Log(Sink):
    """Keeps the facts, and indexes each immediately unless `behind`."""

    tools: Tools | None = None
    behind: bool = False
    silent: bool = False

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        if self.silent:
            raise DeliveryUnconfirmed("timed out")
        await super().send(topic, event, traceparent=traceparent, bulk=bulk)
        if topic is topics.FACTS and not self.behind:
            assert self.tools is not None
            await index(event, self.tools)

    async def catch_up(self) -> None:
        """Index every fact, including those indexed before."""
        assert self.tools is not None
        self.behind = False
        for topic, event in self.sent:
            if topic is topics.FACTS:
                await index(event, self.tools)


@dataclass
class Server:
    """The embedded gateway with an indexer beside it, on a real folder and the real in-process read model."""

    files: FileStore
    read_model: ReadModel
    log: Log
    client: httpx.AsyncClient
    folder: Path

    async def image(self, owner: str = DEFAULT_OWNER) -> str:
        """Index an image; return its id. Its context is {"note": "private"}."""
        image_id = new_image_id()
        for fact in Facts(image_id, owner=owner).all():
            await self.log.send(topics.FACTS, fact)
        return image_id

    async def patch(self, image_id: str, body: Any, **headers: str) -> httpx.Response:
        """Send a merge patch."""
        sent = {"content-type": MERGE_PATCH, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.client.patch(f"{IMAGES}/{image_id}", content=json.dumps(body), headers=sent)

    @asynccontextmanager
    async def behind(self) -> AsyncIterator[None]:
        """Let the indexer lag and shorten the gateway's wait; index everything at the end."""
        patient, self.log.behind = self.client, True
        components = QueryComponents(
            files=self.files, events=self.log, read_model=self.read_model, readiness=StubReadiness()
        )
        async with client_of(embedded_app(settings(annotation_wait_s=0.05), components)) as self.client:
            yield
        self.client = patient
        await self.log.catch_up()

    async def details(self, image_id: str) -> httpx.Response:
        """Get an image's description."""
        answer = await self.client.get(f"{IMAGES}/{image_id}/metadata")
        assert answer.status_code == 200, answer.text
        return answer

    def published(self) -> list[ImageAnnotated]:
        """Return the annotations in the log."""
        return [event for _, event in self.log.sent if isinstance(event, ImageAnnotated)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A gateway without images."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        log = Log(tools=Tools(read_model, files))
        components = QueryComponents(files=files, events=log, read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(annotation_wait_s=60), components)) as client:
            yield Server(files, read_model, log, client, tmp_path)


async def test_a_change_is_visible_in_every_response(server: Server) -> None:
    """After a 200 the description, the listing and the job's result have the tags, category and merged metadata."""
    image_id = await server.image()
    body = {"tags": ["beach", "beach", "red car"], "category": "trip", "context": {"a": {"b": 1}}}
    answer = await server.patch(image_id, body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["tags"], answer.json()["category"]) == (["beach", "red car"], "trip")
    assert answer.json()["context"] == {"note": "private", "a": {"b": 1}}
    details = await server.details(image_id)
    assert (details.content, details.headers["etag"]) == (answer.content, answer.headers["etag"])
    assert (details.json()["labels"], details.json()["text"]) == (["bus", "person"], "Hello world")
    (item,) = (await server.client.get(IMAGES, params={"tag": "red car", "category": "trip"})).json()["items"]
    assert item["image_id"] == image_id
    result = (await server.client.get(f"{IMAGES}/jobs/{image_id}.1/result")).json()
    assert (result["metadata"]["tags"], result["metadata"]["category"]) == (["beach", "red car"], "trip")


async def test_null_removes_and_absent_fields_stay(server: Server) -> None:
    """Each field of a patch changes only itself, at any depth; null removes."""
    image_id = await server.image()
    await server.patch(image_id, {"tags": ["a"], "category": "c", "context": {"x": {"y": 1, "z": 2}}})
    answer = await server.patch(image_id, {"context": {"note": None, "x": {"y": None, "new": [None]}}})
    assert answer.json()["context"] == {"x": {"z": 2, "new": [None]}}
    assert (answer.json()["tags"], answer.json()["category"]) == (["a"], "c")
    answer = await server.patch(image_id, {"tags": None, "category": None, "context": None})
    assert (answer.json()["tags"], answer.json().get("category"), answer.json()["context"]) == ([], None, {})
    assert [event.revision for event in server.published()] == [1, 2, 3]


async def test_a_patch_without_a_change_publishes_nothing(server: Server) -> None:
    """An empty patch, or one with the current values, returns the description and sends no event."""
    image_id = await server.image()
    await server.patch(image_id, {"tags": ["a"]})
    for body in ({}, {"tags": ["a"]}, {"tags": ["a", "a"]}, {"category": None}, {"context": {"gone": None}}):
        answer = await server.patch(image_id, body)
        assert (answer.status_code, answer.json()["revision"]) == (200, 1)
    assert len(server.published()) == 1


async def test_plain_json_is_a_merge_patch_too(server: Server) -> None:
    """`application/json` is accepted as well; any other type is rejected."""
    image_id = await server.image()
    answer = await server.client.patch(f"{IMAGES}/{image_id}", json={"tags": ["a"]})
    assert answer.json()["tags"] == ["a"]
    other = await server.client.patch(
        f"{IMAGES}/{image_id}", content=b"[]", headers={"content-type": "application/json-patch+json"}
    )
    refused(other, 415, "unsupported-media-type")


async def test_if_match_prevents_lost_updates(server: Server) -> None:
    """With If-Match, of two changes based on the same ETag only the first succeeds; the second is 412."""
    image_id = await server.image()
    etag = (await server.details(image_id)).headers["etag"]
    first = await server.patch(image_id, {"tags": ["first"]}, if_match=etag)
    assert first.status_code == 200
    refused(await server.patch(image_id, {"tags": ["second"]}, if_match=etag), 412, "precondition-failed")
    refused(await server.patch(image_id, {"tags": ["second"]}, if_match=f"W/{first.headers['etag']}"), 412,
            "precondition-failed")  # fmt: skip
    assert (await server.details(image_id)).json()["tags"] == ["first"]
    both = f'"other", {first.headers["etag"]}'
    assert (await server.patch(image_id, {"tags": ["third"]}, if_match=both)).status_code == 200
    assert (await server.patch(image_id, {"tags": ["fourth"]}, if_match="*")).status_code == 200


async def test_a_change_that_is_not_indexed_yet_is_not_lost(server: Server) -> None:
    """While the indexer lags, a change is 202 with the new description; the next change builds on it."""
    image_id = await server.image()
    before = (await server.details(image_id)).headers["etag"]
    async with server.behind():
        first = await server.patch(image_id, {"tags": ["a"], "context": {"x": 1}})
        assert first.status_code == 202, first.text
        assert first.json()["tags"] == ["a"]
        assert first.headers["location"].endswith(f"{IMAGES}/{image_id}/metadata")
        refused(await server.patch(image_id, {"category": "c"}, if_match=before), 412, "precondition-failed")
        second = await server.patch(image_id, {"category": "c", "context": {"y": 2}}, if_match=first.headers["etag"])
        assert second.status_code == 202, second.text
        assert (await server.details(image_id)).json()["tags"] == []
    after = await server.details(image_id)
    assert (after.content, after.headers["etag"]) == (second.content, second.headers["etag"])
    assert (after.json()["tags"], after.json()["category"]) == (["a"], "c")
    assert after.json()["context"] == {"note": "private", "x": 1, "y": 2}


async def test_concurrent_changes_are_all_kept(server: Server) -> None:
    """Concurrent changes of an image lose nothing, whether or not the indexer lags."""
    image_id = await server.image()
    async with server.behind():
        answers = await asyncio.gather(*(server.patch(image_id, {"context": {f"k{n}": n}}) for n in range(4)))
        assert {answer.status_code for answer in answers} == {202}
    assert (await server.details(image_id)).json()["context"] == {"note": "private", **{f"k{n}": n for n in range(4)}}


async def test_an_image_can_be_annotated_before_it_is_processed(server: Server) -> None:
    """From its 202 on an image has its submitted fields and can be changed; processing keeps the changes."""
    form = {"metadata": '{"a": 1, "b": 2}', "tags": "x, y", "category": "c"}
    sent = await server.client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, data=form)
    assert sent.status_code == 202, sent.text
    image_id = sent.json()["image_id"]
    at_once = (await server.details(image_id)).json()
    assert (at_once["tags"], at_once["category"], at_once["context"]) == (["x", "y"], "c", {"a": 1, "b": 2})
    assert (at_once["state"], at_once["filename"]) == ("processing", "cat.jpg")
    answer = await server.patch(image_id, {"tags": ["z"], "context": {"a": None}})
    assert answer.status_code == 200, answer.text
    for fact in Facts(image_id, owner=DEFAULT_OWNER).all():
        await server.log.send(topics.FACTS, fact)
    known = (await server.details(image_id)).json()
    assert (known["tags"], known["category"], known["context"]) == (["z"], "c", {"b": 2})
    assert (known["state"], known["bucket"]) == ("completed", "trip")


@pytest.mark.parametrize("seed", range(3))
async def test_a_replay_of_the_log_gives_the_same_annotations(server: Server, seed: int) -> None:
    """The facts, read into an empty read model in any order and some twice, give the same annotations."""
    image_id = await server.image()
    for n, body in enumerate(({"tags": ["a"]}, {"category": "c", "context": {"x": 1}}, {"tags": ["b", "c"]})):
        assert (await server.patch(image_id, body)).status_code == 200, n
    known = (await server.details(image_id)).json()
    facts = [event for topic, event in server.log.sent if topic is topics.FACTS]
    facts += facts[::2]
    chance = random.Random(seed)
    if seed:
        chance.shuffle(facts)
    async with open_read_model(QdrantSettings(path=server.folder / "anew")) as anew:
        for fact in facts:
            await index(fact, Tools(anew, server.files))
        record = await anew.get(image_id)
    assert record is not None
    assert (list(record.tags), record.category, record.context) == (["b", "c"], "c", known["context"])
    assert (record.state, record.revision, record.filename) == ("completed", 3, "me.jpg")


async def test_annotations_are_in_the_history(server: Server) -> None:
    """Each change is in the history once, however often and late its event is delivered."""
    image_id = await server.image()
    for tag in ("a", "b"):
        assert (await server.patch(image_id, {"tags": [tag]})).status_code == 200
    late = ImageAnnotated(image_id=image_id, owner=DEFAULT_OWNER, revision=1, tags=("late",), occurred_at="2026-01-01")
    await server.log.send(topics.FACTS, late)
    await server.log.catch_up()
    entries = await server.read_model.history(image_id)
    event_ids = sorted(entry.event_id for entry in entries.values() if entry.type == ImageAnnotated.type)
    assert event_ids == sorted(event.id for event in server.published())
    assert len(event_ids) == 3
    assert (await server.details(image_id)).json()["tags"] == ["b"]


async def test_annotations_survive_a_new_generation(server: Server) -> None:
    """An annotation applies to the next generation of its image, in either order of the events."""
    image_id = await server.image()
    await server.patch(image_id, {"tags": ["a"]})
    for fact in Facts(image_id, owner=DEFAULT_OWNER, generation=2).all():
        await server.log.send(topics.FACTS, fact)
    known = (await server.details(image_id)).json()
    assert (known["tags"], known["revision"], known["job_id"]) == (["a"], 1, f"{image_id}.2")
    late = ImageAnnotated(image_id=image_id, owner=DEFAULT_OWNER, generation=1, revision=2, tags=("late",))
    await server.log.send(topics.FACTS, late)
    assert (await server.details(image_id)).json()["tags"] == ["late"]
    assert (await server.patch(image_id, {"category": "c"})).json()["tags"] == ["late"]


async def test_a_deleted_image_cannot_be_annotated(server: Server) -> None:
    """From the 202 of a deletion on nothing can be read or changed, and replayed events restore nothing."""
    image_id = await server.image()
    await server.patch(image_id, {"tags": ["a"]})
    server.log.behind = True
    assert (await server.client.delete(f"{IMAGES}/{image_id}")).status_code == 202
    refused(await server.patch(image_id, {"tags": ["b"]}), 410, "gone")
    refused(await server.client.get(f"{IMAGES}/{image_id}/metadata"), 410, "gone")
    assert any(isinstance(event, DeletionRequested) for _, event in server.log.sent)
    await server.log.catch_up()
    record = await server.read_model.get(image_id)
    assert record is not None
    assert (record.deleted, record.tags, record.context) == (True, (), {})
    assert [info.key async for info in server.files.list(image_prefix(image_id))] == []


async def test_another_owners_image_is_not_found(server: Server) -> None:
    """Another owner's image is answered like an unknown id."""
    theirs = await server.image(owner="bert")
    for image_id in (theirs, new_image_id(), "x"):
        refused(await server.patch(image_id, {"tags": ["b"]}), 404, "not-found")
        refused(await server.client.get(f"{IMAGES}/{image_id}/metadata"), 404, "not-found")
    late = ImageAnnotated(image_id=theirs, owner=DEFAULT_OWNER, generation=9, revision=7, tags=("mine",))
    await server.log.send(topics.FACTS, late)
    record = await server.read_model.get(theirs)
    assert record is not None
    assert (record.owner, record.generation, record.tags) == ("bert", 1, ())


async def test_an_invalid_field_is_named(server: Server) -> None:
    """An invalid field is rejected by name, and nothing is published."""
    image_id = await server.image()
    wrong: list[tuple[Any, str]] = [
        ([], "body"), ({"tags": "a"}, "tags"), ({"tags": ["a", "b,c"]}, "tags.1"), ({"tags": [" a"]}, "tags.0"),
        ({"tags": ["a\n"]}, "tags.0"), ({"tags": ["x" * 65]}, "tags.0"), ({"category": ""}, "category"),
        ({"tags": [str(n) for n in range(51)]}, "tags"), ({"context": []}, "context"),
    ]  # fmt: skip
    for body, field in wrong:
        problem = refused(await server.patch(image_id, body), 422, "invalid-field")
        assert problem.errors[0].field == field
    for context in ({"x": "y" * 17_000}, {"x": json.loads("[" * 40 + "]" * 40)}):
        refused(await server.patch(image_id, {"context": context}), 400, "invalid-metadata")
    assert server.published() == []


async def test_an_unknown_field_is_named(server: Server) -> None:
    """An unknown field of the patch is rejected by name."""
    answer = await server.patch(await server.image(), {"colour": "red"})
    assert answer.status_code in (400, 422), answer.text
    assert [item["field"] for item in answer.json()["errors"]] == ["colour"]


async def test_nothing_is_changed_while_kafka_is_unavailable(server: Server) -> None:
    """Without Kafka the response is 503, and the next change does not build on the failed one."""
    image_id = await server.image()
    server.log.unavailable = True
    refused(await server.patch(image_id, {"tags": ["lost"]}), 503, "dependency-unavailable")
    assert await Revisions(server.files).newest(image_id) is None
    server.log.unavailable = False
    answer = await server.patch(image_id, {"category": "c"})
    assert (answer.json()["tags"], answer.json()["revision"]) == ([], 1)


async def test_an_unconfirmed_change_is_published_again(server: Server) -> None:
    """A change that Kafka did not confirm is published on a retry, and changes in between are kept."""
    image_id = await server.image()
    server.log.silent = True
    refused(await server.patch(image_id, {"tags": ["maybe"]}), 503, "dependency-unavailable")
    server.log.silent = False
    again = await server.patch(image_id, {"tags": ["maybe"]})
    assert (again.status_code, again.json()["tags"], again.json()["revision"]) == (200, ["maybe"], 1)
    server.log.silent = True
    refused(await server.patch(image_id, {"tags": ["perhaps"]}), 503, "dependency-unavailable")
    server.log.silent = False
    other = await server.patch(image_id, {"category": "c"})
    assert (other.json()["tags"], other.json()["category"], other.json()["revision"]) == (["perhaps"], "c", 3)


async def test_only_the_newest_revision_is_kept(server: Server) -> None:
    """Only the newest revision is among the image's objects, whatever the number of changes."""
    image_id = await server.image()
    for n in range(4):
        assert (await server.patch(image_id, {"tags": [str(n)]})).status_code == 200
    newest = await Revisions(server.files).newest(image_id)
    assert newest is not None
    assert (newest.revision, newest.tags) == (4, ("3",))
    assert len([info async for info in server.files.list(image_prefix(image_id))]) == 1


async def test_the_number_of_a_removed_revision_cannot_be_reserved(server: Server) -> None:
    """A late writer whose revision number is free again is rejected, and leaves no object."""
    image_id = await server.image()
    revisions = Revisions(server.files)

    def annotation(revision: int, tag: str) -> ImageAnnotated:
        return ImageAnnotated(image_id=image_id, owner=DEFAULT_OWNER, revision=revision, tags=(tag,))

    assert await revisions.reserve(annotation(2, "b"))
    assert not await revisions.reserve(annotation(2, "other"))
    assert not await revisions.reserve(annotation(1, "late"))
    await revisions.release(annotation(2, "other"))
    newest = await revisions.newest(image_id)
    assert newest is not None
    assert newest.tags == ("b",)
    assert len([info async for info in server.files.list(image_prefix(image_id))]) == 1


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}), ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}), (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]), ({"a": "foo"}, None, None), ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}), ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)  # fmt: skip
def test_patches_merge_as_the_standard_says(target: Any, patch: Any, merged: Any) -> None:
    """The cases of RFC 7396, appendix A."""
    assert merge_patch(target, patch) == merged


async def test_changes_are_limited_per_owner(server: Server) -> None:
    """By default an owner may change 600 images an hour; reads do not count, and uploads have a limit of their own."""
    image_id = await server.image()
    async with open_limits(RateLimitSettings()) as limits:
        components = QueryComponents(
            files=server.files,
            events=server.log,
            read_model=server.read_model,
            readiness=StubReadiness(),
            limits=limits,
        )
        async with client_of(embedded_app(settings(annotation_wait_s=60), components)) as server.client:
            answer = await server.patch(image_id, {"category": "trip"})
            assert (answer.status_code, answer.headers["ratelimit-policy"]) == (200, '"changes";q=600;w=3600')
            assert "ratelimit" not in (await server.details(image_id)).headers
            spent = Request({"type": "http"})
            await limits.take(spent, ANONYMOUS, CHANGES, cost=599)
            answer = await server.patch(image_id, {"category": "home"})
            assert "600 changes in 1 hour" in refused(answer, 429, "rate-limited").detail
            assert (await server.details(image_id)).json()["category"] == "trip"
