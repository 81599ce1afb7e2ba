"""The admin API: access, invalid requests, and responses to operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents import pipeline
from agents.indexing.record_facts import record as record_fact
from gateway.access.authenticator import open_authenticator
from gateway.access.loopback import is_loopback
from gateway.access.settings import AuthSettings
from gateway.apps.components import IngestComponents, QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.ingest import ingest_app
from gateway.apps.query import query_app
from gateway.settings import GatewaySettings
from schemas.http.admin import AgentList, ReprocessList, ReprocessPlan, ReprocessView
from schemas.values import ImageState, Profile, new_image_id
from streams.errors import NotReady
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.operations.agent_pauses import Control
from streams.operations.reprocess_jobs import JobState, ReprocessJobs
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from tests.support.facts import Facts
from tests.support.gateway_components import Encoder, FaultyFiles, Sink, StubReadiness, refused, settings
from tests.support.read_models import merge

TOKEN = "correct horse battery"
HERE = "http://127.0.0.1:8080"
ADMIN = "/api/v1/admin"
CALLS = (
    ("GET", f"{ADMIN}/reprocess"),
    ("POST", f"{ADMIN}/reprocess"),
    ("GET", f"{ADMIN}/reprocess/ocr-1"),
    ("POST", f"{ADMIN}/reprocess/ocr-1/cancel"),
    ("GET", f"{ADMIN}/agents"),
    ("POST", f"{ADMIN}/agents/ocr/pause"),
    ("POST", f"{ADMIN}/agents/ocr/resume"),
)

Client = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@dataclass
class Server:
    """An embedded gateway over a real store and read model in a folder."""

    files: FaultyFiles
    read_model: ReadModel

    @property
    def store(self) -> FileStore:
        return self.files

    @asynccontextmanager
    async def client(
        self, base: str = HERE, headers: dict[str, str] | None = None, **changes: object
    ) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client of the gateway with these settings, without a socket."""
        own = settings(**changes)
        authenticator = await open_authenticator(own, AuthSettings(), self.store)
        app = embedded_app(own, replace(self.components(), authenticator=authenticator))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
            yield client

    def components(self) -> QueryComponents:
        """Return what an app is made of."""
        return QueryComponents(
            files=self.files,
            events=Sink(),
            read_model=self.read_model,
            encoder=Encoder(),
            readiness=StubReadiness(),
            parameters_of=lambda name: pipeline.stage(name).parameters,
        )

    async def complete(self, count: int) -> list[str]:
        """Record completed images; return their ids, oldest first."""
        images: list[str] = [new_image_id() for _ in range(count)]
        for image in images:
            for fact in Facts(image).all():
                await record_fact(fact, self.read_model, Tombstones(self.store))
            await merge(self.read_model, image, 1, {"state": ImageState.COMPLETED.value})
        return images


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Return an office of its own."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        yield Server(FaultyFiles(files), read_model)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_set_token_is_required(server: Server, method: str, path: str) -> None:
    """Without the token, or with another, every admin route is rejected, wherever the gateway listens."""
    for given in (None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer é{TOKEN}"):
        headers = {} if given is None else {"Authorization": given.encode()}
        async with server.client(admin_token=TOKEN, host="0.0.0.0") as client:
            answer = await client.request(method, path, headers=headers, json={})  # type: ignore[arg-type]
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text


async def test_the_token_allows_remote_access(server: Server) -> None:
    """With the right token the admin API is accessible from anywhere."""
    headers = {"Authorization": f"bearer {TOKEN}"}
    async with server.client("http://darkroom.example", headers, admin_token=TOKEN, host="0.0.0.0") as client:
        assert (await client.get(f"{ADMIN}/agents")).status_code == 200


async def test_without_a_token_or_keys_nobody_opens_it_to_others(server: Server) -> None:
    """A gateway on a public address does not start without authentication, and logs the reason."""
    with pytest.raises(NotReady, match="ADMIN_TOKEN"):
        async with server.client(host="0.0.0.0"):
            pass


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_token_restricts_local_programs_too(server: Server, method: str, path: str) -> None:
    """On a loopback address with a token set, programs without it may use everything but the admin API."""
    async with server.client(admin_token=TOKEN) as client:
        refused(await client.request(method, path, json={}), 401, "unauthorized")
        assert (await client.get("/api/v1/search", params={"q": "cat"})).status_code == 200


@pytest.mark.parametrize(
    ("base", "headers"),
    [
        ("http://rebound.example:8080", {}),
        (HERE, {"Origin": "https://evil.example"}),
        (HERE, {"Origin": "null"}),
        (HERE, {"Origin": "http://127.0.0.1:9999"}),
    ],
)
async def test_cross_site_requests_are_rejected(server: Server, base: str, headers: dict[str, str]) -> None:
    """A browser on this machine that another site directs here is rejected, by any host name."""
    async with server.client(base, headers) as client:
        refused(await client.post(f"{ADMIN}/agents/ocr/resume"), 403, "forbidden")


async def test_local_programs_need_no_token(server: Server) -> None:
    """On a loopback address programs of this machine need no token."""
    for base in (HERE, "http://localhost:8080", "http://[::1]:8080"):
        async with server.client(base, {"Origin": base}) as client:
            assert (await client.get(f"{ADMIN}/agents")).status_code == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False), ("localhost.example", False)],
)  # fmt: skip
def test_what_is_this_machine(host: str, local: bool) -> None:
    """Only loopback addresses count as this machine."""
    assert is_loopback(host) is local


def test_a_short_token_is_rejected() -> None:
    """A token that can be guessed is rejected."""
    with pytest.raises(ValueError, match="admin_token"):
        GatewaySettings.model_validate({"admin_token": "secret"})


async def test_only_the_query_gateway_has_the_admin_api(server: Server) -> None:
    """The query gateway has the admin API, the ingest gateway does not."""
    apps = {
        200: query_app(settings(), server.components()),
        404: ingest_app(settings(), IngestComponents(files=server.store, events=Sink(), readiness=StubReadiness())),
    }
    for status, app in apps.items():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HERE) as client:
            assert (await client.get(f"{ADMIN}/agents")).status_code == status


async def test_a_dry_run_changes_nothing(server: Server) -> None:
    """It returns the number of images and the first ids."""
    images = await server.complete(12)
    async with server.client() as client:
        asked = {"stage": "ocr", "where": "state=completed", "dry_run": True}
        answer = await client.post(f"{ADMIN}/reprocess", json=asked)
    assert answer.status_code == 200
    plan = ReprocessPlan.model_validate_json(answer.content)
    assert (plan.images, plan.counted_all, list(plan.first)) == (12, True, images[:10])
    assert await ReprocessJobs(server.store).all() == []


async def test_a_rerun_is_created_shown_and_cancelled(server: Server) -> None:
    """A created rerun is found by the runner, can be shown, and can be cancelled."""
    await server.complete(1)
    async with server.client() as client:
        answer = await client.post(f"{ADMIN}/reprocess", json={"stage": "ocr", "where": "owner=anna", "per_second": 5})
        assert answer.status_code == 202
        asked = ReprocessView.model_validate_json(answer.content)
        (job,) = await ReprocessJobs(server.store).all()
        assert (job.id, job.stage, job.where, job.per_second) == (asked.id, "ocr", "owner=anna", 5.0)
        await ReprocessJobs(server.store).save(
            job.model_copy(update={"total": 100, "done": 30, "skipped": 10, "rate": 4})
        )
        shown = ReprocessView.model_validate_json((await client.get(answer.headers["location"])).content)
        assert (shown.total, shown.done, shown.skipped, shown.eta_s) == (100, 30, 10, 15.0)
        listed = ReprocessList.model_validate_json((await client.get(f"{ADMIN}/reprocess")).content)
        assert listed.jobs == (shown,)
        stopping = await client.post(f"{answer.headers['location']}/cancel")
        stopped = ReprocessView.model_validate_json(stopping.content)
        assert (stopped.state, stopped.eta_s) == (JobState.CANCELLED, None)
        refused(await client.get(f"{ADMIN}/reprocess/ocr-1"), 404, "not-found")
        refused(await client.post(f"{ADMIN}/reprocess/ocr-1/cancel"), 404, "not-found")


async def test_the_profile_of_a_rerun_is_stored_and_shown(server: Server) -> None:
    """The job has the parameters and the added stages, in pipeline order; the runner and the status see both."""
    asked = {"stages": ["embedder", "detector"], "parameters": {"detector": {"confidence": 0.6}, "embedder": {}}}
    async with server.client() as client:
        answer = await client.post(f"{ADMIN}/reprocess", json={"stage": "ocr", "profile": asked})
        assert answer.status_code == 202, answer.text
        shown = (await client.get(answer.headers["location"])).json()
        plain = await client.post(f"{ADMIN}/reprocess", json={"stage": "ocr"})
    assert shown["profile"] == {**asked, "stages": ["detector", "embedder"]}
    assert "profile" not in plain.json()
    jobs = {job.id: job.profile for job in await ReprocessJobs(server.store).all()}
    assert jobs == {shown["id"]: Profile.model_validate(shown["profile"]), plain.json()["id"]: None}


def of(stage: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the request of a rerun with parameters."""
    return {"stage": stage, "profile": {"parameters": parameters}}


@pytest.mark.parametrize(
    ("asked", "field", "refusal"),
    [
        ({"stage": "indexer"}, "stage", (422, "invalid-field")),
        ({"stage": "ocr", "where": "colour=red"}, "where", (422, "invalid-field")),
        ({"stage": "ocr", "per_second": 0}, "per_second", (422, "invalid-field")),
        ({"stage": "ocr", "per_second": 1e9}, "per_second", (422, "invalid-field")),
        ({"stage": "ocr", "dry_run": 0}, "dry_run", (422, "invalid-field")),
        ({"stage": "ocr", "force": True}, "force", (400, "unknown-field")),
        ({"stage": "ocr", "profile": {"stages": ["painter"]}}, "profile.stages.0", (422, "invalid-field")),
        ({"stage": "ocr", "profile": {"stages": "ocr"}}, "profile.stages", (422, "invalid-field")),
        ({"stage": "ocr", "profile": {"stage": ["ocr"]}}, "profile.stage", (400, "unknown-field")),
        (of("ocr", detector={"confidence": 0.5}), "profile.parameters.detector", (422, "invalid-field")),
        (of("detector", detector={"confidence": 7}), "profile.parameters.detector.confidence", (422, "invalid-field")),
        (of("detector", detector={"sides": {}}), "profile.parameters.detector.sides", (400, "unknown-field")),
        (of("embedder", embedder={"model": "x"}), "profile.parameters.embedder", (422, "invalid-field")),
        ({}, "stage", (422, "invalid-field")),
    ],
)
async def test_an_invalid_request_names_its_field(
    server: Server, asked: dict[str, Any], field: str, refusal: tuple[int, str]
) -> None:
    """An invalid request is rejected with the field and the term, and creates no job."""
    async with server.client() as client:
        problem = refused(await client.post(f"{ADMIN}/reprocess", json=asked), *refusal)
    assert [item.field for item in problem.errors] == [field]
    assert await ReprocessJobs(server.store).all() == []


async def test_agents_are_paused_and_resumed(server: Server) -> None:
    """A paused agent is paused for all its workers, and the reason is public."""
    control = Control(server.store)
    await control.set_degraded("embedder", "no weights")
    async with server.client() as client:
        answer = await client.post(f"{ADMIN}/agents/ocr/pause", json={"reason": "new model"})
        found = {agent.name: agent for agent in AgentList.model_validate_json(answer.content).agents}
        assert found["ocr"].paused is not None
        assert (found["ocr"].paused.reason, found["ocr"].paused.by) == ("new model", "operator")
        assert (found["embedder"].paused, found["embedder"].degraded) == (None, "no weights")
        assert (await control.paused("ocr")) is not None
        resumed = AgentList.model_validate_json((await client.post(f"{ADMIN}/agents/ocr/resume")).content)
        assert all(agent.paused is None for agent in resumed.agents)
        assert await control.paused("ocr") is None
        refused(await client.post(f"{ADMIN}/agents/painter/pause", json={"reason": "x"}), 404, "not-found")
        refused(await client.post(f"{ADMIN}/agents/ocr/pause", json={}), 422, "invalid-field")


async def test_an_unavailable_store_is_503(server: Server) -> None:
    """Without the object store the response is 503, and nothing internal is exposed."""
    async with server.client() as client:
        server.files.unavailable = True
        for path in (f"{ADMIN}/agents", f"{ADMIN}/reprocess"):
            problem = refused(await client.get(path), 503, "dependency-unavailable")
            assert "10.0.0.7" not in problem.detail
