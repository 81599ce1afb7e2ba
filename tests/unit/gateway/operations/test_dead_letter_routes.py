"""Dead letters over HTTP: listing, details, replay, discard, and invalid requests."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from schemas.events.envelope import Record
from schemas.values import ErrorCode, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.retries import dead_letter_listing
from streams.retries.dead_letter_listing import DeadLetterListing, Place
from streams.retries.dead_letters import DeadLetterStore, Failure, dead_letter
from streams.settings import FilesSettings, KafkaSettings, QdrantSettings
from streams.testing.memory_log import MemoryLog
from streams.topics import GIVES_UP, dead_topic, retry_topic
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.stage_kit import message, uploaded

LETTERS = "/api/v1/admin/dead-letters"
SECRET = "holiday-in-rome.jpg"


@dataclass
class Server:
    """A gateway on in-memory topics: two dead letters of the sanitizer, two of the resizer, one of them erased."""

    client: httpx.AsyncClient
    log: MemoryLog
    files: FileStore
    images: list[str]  # of the sanitizer's letters, then the resizer's, then the deleted one

    def replayed(self, agent: str) -> list[str | None]:
        """Return the images of an agent's retry topic."""
        name = retry_topic(agent)
        return [record.header("ce_subject") for record in self.log.records(name)] if name in self.log.topics else []

    async def listed(self, **parameters: str) -> list[str]:
        """Return the images of the first page."""
        answer = await self.client.get(LETTERS, params=parameters)
        assert answer.status_code == 200, answer.text
        return [letter["image_id"] for letter in answer.json()["letters"]]


def _put(log: MemoryLog, agent: str, code: ErrorCode, **more: str) -> str:
    image_id = new_image_id()
    record = MemoryLog().append(message(uploaded(image_id, filename=SECRET)))
    headers = (*record.headers, *((name, value.encode()) for name, value in more.items()))
    record = Record(record.topic, record.partition, record.offset, record.key, record.value, headers, 0)
    failure = Failure(code, ValueError("it broke"), 3, retriable=False, first_failure="2026-01-01T00:00:00.000Z")
    log.append(dead_letter(record, agent, "1", failure))
    return image_id


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """The gateway."""
    log = MemoryLog()

    def some(
        _kafka: KafkaSettings, agents: Sequence[str], place: Place, most: int
    ) -> tuple[list[Record], Place | None]:
        found = [
            (agent, record)
            for agent in agents[agents.index(place.agent) :]
            for record in sorted(log.records(dead_topic(agent)), key=lambda one: (one.partition, one.offset))
            if agent != place.agent or (record.partition, record.offset) >= (place.partition, place.offset)
        ]
        rest = found[most:]
        following = Place(rest[0][0], rest[0][1].partition, rest[0][1].offset) if rest else None
        return [record for _, record in found[:most]], following

    monkeypatch.setattr(dead_letter_listing, "read_some", some)
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        images = [
            _put(log, "sanitizer", ErrorCode.INTERNAL_ERROR),
            _put(log, "sanitizer", ErrorCode.OBJECT_CHANGED),
            _put(log, "resizer", ErrorCode.OBJECT_CHANGED),
            _put(log, "resizer", ErrorCode.OBJECT_CHANGED),
        ]
        assert await Tombstones(files).make_certain(images[3], "default", 2) is not None
        store = DeadLetterStore(KafkaSettings(), files, log)
        components = QueryComponents(
            files=files,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            letters=DeadLetterListing(KafkaSettings(), store),
        )
        async with client_of(query_app(settings(), components)) as client:
            yield Server(client, log, files, images)


async def test_dead_letters_are_listed_without_their_bodies(server: Server) -> None:
    """Agent, id, code, reason, image, attempts and size, but no body; a deleted image's dead letter is omitted."""
    answer = await server.client.get(LETTERS)
    letters = answer.json()["letters"]
    assert sorted(letter["image_id"] for letter in letters) == sorted(server.images[:3])
    first = next(letter for letter in letters if letter["image_id"] == server.images[0])
    assert (first["agent"], first["code"], first["message"]) == ("sanitizer", "internal-error", "it broke")
    assert (first["attempts"], first["replays"]) == (3, 0)
    assert first["size_bytes"] > 100
    assert "next_cursor" not in answer.json()
    assert SECRET not in answer.text


async def test_filters_narrow_the_list(server: Server) -> None:
    """By agent, code, image and time; handled ones on request only."""
    first, second, third, _ = server.images
    assert sorted(await server.listed(agent="sanitizer")) == sorted([first, second])
    assert sorted(await server.listed(code="object-changed")) == sorted([second, third])
    assert await server.listed(image_id=second) == [second]
    assert await server.listed(since="2100-01-01T00:00:00Z") == []
    assert len(await server.listed(since="2020-01-01T00:00:00+01:00")) == 3
    assert len(await server.listed(handled="true")) == 4


async def test_pages_follow_each_other_without_gaps(server: Server) -> None:
    """With one per page, cursor and Link lead through all dead letters, each once."""
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(8):
        answer = await server.client.get(LETTERS, params={"limit": 1, **({"cursor": cursor} if cursor else {})})
        seen += [letter["image_id"] for letter in answer.json()["letters"]]
        cursor = answer.json().get("next_cursor")
        if cursor is None:
            break
        assert f"cursor={cursor}" in answer.headers["link"]
        assert 'rel="next"' in answer.headers["link"]
    assert cursor is None
    assert sorted(seen) == sorted(server.images[:3])


async def test_a_body_is_returned_on_request_only(server: Server) -> None:
    """Headers and stack always, the body on request; of a deleted image never, and no message."""
    letters = (await server.client.get(LETTERS, params={"handled": True})).json()["letters"]
    names = {letter["image_id"]: f"{LETTERS}/{letter['agent']}/{letter['id']}" for letter in letters}
    plain = await server.client.get(names[server.images[0]])
    assert plain.json()["headers"]["dlq.error.code"] == "internal-error"
    assert "ValueError" in plain.json()["headers"]["dlq.error.stack"]
    assert SECRET not in plain.text
    whole = await server.client.get(names[server.images[0]], params={"payload": True})
    assert SECRET in whole.json()["payload"]
    gone = await server.client.get(names[server.images[3]], params={"payload": True})
    assert (gone.json()["handled"], gone.json()["size_bytes"], gone.json()["message"]) == ("erased", 0, "")
    assert SECRET not in gone.text


async def test_a_replay_is_a_dry_run_by_default_and_happens_once(server: Server) -> None:
    """Without `dry_run: false` nothing is sent; then each dead letter once, even if requested again."""
    body = {"agent": "sanitizer", "per_second": 200}
    dry = (await server.client.post(f"{LETTERS}/replay", json=body)).json()
    assert dry["dry_run"] is True
    assert sorted(act["image_id"] for act in dry["acts"]) == sorted(server.images[:2])
    assert {act["act"] for act in dry["acts"]} == {"would-replay"}
    assert server.replayed("sanitizer") == []

    done = (await server.client.post(f"{LETTERS}/replay", json={**body, "dry_run": False})).json()
    assert {act["act"] for act in done["acts"]} == {"replayed"}
    again = (await server.client.post(f"{LETTERS}/replay", json={**body, "dry_run": False})).json()
    assert again["acts"] == []
    assert sorted(str(image) for image in server.replayed("sanitizer")) == sorted(server.images[:2])
    assert await server.listed(agent="sanitizer") == []


async def test_a_replay_is_limited(server: Server) -> None:
    """`limit` bounds one request, which returns a cursor; an event that failed too often is not replayed."""
    worn = _put(server.log, "sanitizer", ErrorCode.INTERNAL_ERROR, **{"replay.count": "3"})
    body: dict[str, object] = {"dry_run": False, "limit": 1, "per_second": 200}
    acts = []
    for _ in range(8):
        answer = (await server.client.post(f"{LETTERS}/replay", json=body)).json()
        acts += [(act["image_id"], act["act"]) for act in answer["acts"]]
        if "next_cursor" not in answer:
            break
        body["cursor"] = answer["next_cursor"]
    expected = [(image, "replayed") for image in server.images[:3]] + [(worn, "replay-limit")]
    assert sorted(acts) == sorted(expected)
    assert worn not in server.replayed("sanitizer")


async def test_a_discarded_letter_keeps_its_reason_and_is_never_replayed(server: Server) -> None:
    """Discarding a dead letter by id stores the reason; a replay of all skips it."""
    letters = (await server.client.get(LETTERS, params={"agent": "resizer"})).json()["letters"]
    body = {"agent": "resizer", "letter_id": letters[0]["id"], "reason": "a bad producer", "dry_run": False}
    (act,) = (await server.client.post(f"{LETTERS}/discard", json=body)).json()["acts"]
    assert (act["act"], act["image_id"]) == ("discarded", server.images[2])
    assert b"a bad producer" in await server.files.get(f"dead-letters/resizer/{letters[0]['id']}.json")
    all_of_them = (await server.client.post(f"{LETTERS}/replay", json={"dry_run": False, "per_second": 200})).json()
    assert server.images[2] not in [act["image_id"] for act in all_of_them["acts"]]
    assert server.replayed("resizer") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "?agent=nobody", None, "invalid-field"),
        ("GET", "?limit=0", None, "invalid-field"),
        ("GET", "?limit=100000", None, "invalid-field"),
        ("GET", "?since=yesterday", None, "invalid-field"),
        ("GET", "?cursor=abc", None, "invalid-cursor"),
        ("GET", "?cursor=" + base64.urlsafe_b64encode(b"nobody.0.0").decode().rstrip("="), None, "invalid-cursor"),
        ("GET", "/sanitizer/0-99999", None, "not-found"),
        ("GET", "/nobody/0-0", None, "not-found"),
        ("GET", "/sanitizer/..%2F0", None, "not-found"),
        ("POST", "/replay", {"letter_id": "0-0"}, "invalid-field"),
        ("POST", "/discard", {"agent": GIVES_UP[0]}, "invalid-field"),
        ("POST", "/discard", {"reason": ""}, "invalid-field"),
    ],
)
async def test_invalid_requests_are_rejected(
    server: Server, method: str, path: str, body: dict[str, str] | None, code: str
) -> None:
    """An unknown agent, a limit out of bounds, a forged cursor and missing fields are rejected."""
    answer = await server.client.request(method, LETTERS + path, json=body)
    refused(answer, {"invalid-field": 422, "invalid-cursor": 400, "not-found": 404}[code], code)
