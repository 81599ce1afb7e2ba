"""Failed images with their reasons; for operators of all owners, with links to dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from gateway.access.identity import Identity, Scope
from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from schemas.http.operations import FailedPage
from schemas.values import ImageState, Owner, StageState, new_image_id
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

FAILED = "/api/v1/health/failed"


class Named:
    """An authenticator that trusts the Authorization header: `owner scope scope`."""

    async def identify(self, request: Request) -> Identity:
        owner, *scopes = request.headers["authorization"].split()
        return Identity(Owner(owner), frozenset(map(Scope, scopes)), owner)


@dataclass
class Server:
    """A query gateway over images of two owners."""

    client: httpx.AsyncClient
    read_model: ReadModel

    async def image(self, owner: str, state: ImageState = ImageState.FAILED) -> str:
        """Record an image, by default failed in two stages."""
        image_id = new_image_id()
        record = ImageRecord(image_id=image_id, owner=owner, generation=1, submitted_at="2026-01-01T00:00:00.000Z")
        await self.read_model.begin(record)
        failed = StageRecord(state=StageState.FAILED, reason="deadline-exceeded", message="too slow")
        stages = {
            "ocr": failed.model_copy(update={"finished_at": "2026-01-01T00:00:09.000Z"}),
            "detector": failed.model_copy(
                update={"reason": "internal-error", "finished_at": "2026-01-01T00:00:05.000Z"}
            ),
            "resizer": StageRecord(state=StageState.DONE),
        }
        patch = {"state": state.value, "error_code": "internal-error", "error_message": "a bug of ours"}
        await merge(self.read_model, image_id, 1, patch, stages=stages)
        return image_id

    async def page(self, who: str, **parameters: str | int | bool) -> FailedPage:
        """Get a page as `owner scope scope`."""
        answer = await self.client.get(FAILED, params=parameters, headers={"authorization": who})
        assert answer.status_code == 200, answer.text
        return FailedPage.model_validate_json(answer.content)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The gateway."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        components = QueryComponents(files=files, events=Sink(), readiness=StubReadiness(), read_model=read_model)
        async with client_of(query_app(settings(), replace(components, authenticator=Named()))) as client:
            yield Server(client, read_model)


async def test_an_owner_gets_their_failed_images_newest_first(server: Server) -> None:
    """Only the owner's failed images, newest first, with code, message, stages and times."""
    first = await server.image("anna")
    await server.image("anna", ImageState.COMPLETED)
    await server.image("berta")
    second = await server.image("anna")
    page = await server.page("anna images:read")
    assert [image.image_id for image in page.images] == [second, first]
    shown = page.images[0]
    assert (shown.code, shown.message, shown.stage) == ("internal-error", "a bug of ours", "detector")
    assert shown.stages == {"ocr": "deadline-exceeded", "detector": "internal-error"}
    assert shown.submitted_at == "2026-01-01T00:00:00.000Z"
    assert shown.status_url.endswith(f"/api/v1/images/jobs/{second}.1")
    assert (shown.owner, shown.dead_letters_url) == (None, None)


async def test_an_operator_gets_all_failed_images_with_dead_letters(server: Server) -> None:
    """With the scope `admin` all owners' images are listed, with owner and dead letters; or only the caller's own."""
    theirs, own = await server.image("berta"), await server.image("root")
    page = await server.page("root images:read admin")
    assert [(image.image_id, image.owner) for image in page.images] == [(own, "root"), (theirs, "berta")]
    assert str(page.images[1].dead_letters_url).endswith(f"/api/v1/admin/dead-letters?image_id={theirs}")
    mine = await server.page("root images:read admin", everybody=False)
    assert [image.image_id for image in mine.images] == [own]


async def test_pages_follow_each_other(server: Server) -> None:
    """Each page links the next until all are listed once; a cursor belongs to its listing."""
    images = [await server.image("anna") for _ in range(5)]
    seen: list[str] = []
    page = await server.page("anna images:read", limit=2)
    cursor = page.next_cursor
    assert cursor is not None
    while True:
        seen += [image.image_id for image in page.images]
        if page.next_cursor is None:
            break
        page = await server.page("anna images:read", limit=2, cursor=page.next_cursor)
    assert seen == images[::-1]
    other = await server.client.get(FAILED, params={"cursor": cursor}, headers={"authorization": "berta images:read"})
    refused(other, 400, "invalid-cursor")


async def test_all_owners_require_the_scope_admin(server: Server) -> None:
    """A request for all owners without the scope `admin` is 403; a limit out of bounds is rejected."""
    headers = {"authorization": "anna images:read"}
    refused(await server.client.get(FAILED, params={"everybody": True}, headers=headers), 403, "forbidden")
    for limit in (0, 201):
        refused(await server.client.get(FAILED, params={"limit": limit}, headers=headers), 422, "invalid-field")
