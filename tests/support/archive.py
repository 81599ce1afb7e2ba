"""A query gateway and the indexer on one store and read model, for tests of history and lineage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from agents.stages.indexer import Tools, index
from gateway.access.identity import ANONYMOUS, Identity
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.events.envelope import Event
from schemas.events.facts import Fact
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import DEFAULT_OWNER, Lane, Lineage, ModelRef, ObjectRef, Owner, job_id_of, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import receipt_key, result_key
from streams.object_store.results import StoredResult
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from tests.support.facts import WHEN
from tests.support.gateway_components import Sink, StubReadiness, client_of, settings


class HeaderAuthenticator:
    """Authenticates a request by its X-Owner header, for tests."""

    async def identify(self, request: Any) -> Identity:
        """Return the identity of the owner in the header."""
        owner = request.headers.get("x-owner", DEFAULT_OWNER)
        return Identity(Owner(owner), ANONYMOUS.scopes, owner)


@dataclass
class Archive:
    """A client of the gateway, and the indexer's tools."""

    tools: Tools
    client: httpx.AsyncClient

    async def accepted(self, kind: ReceiptKind = ReceiptKind.UPLOAD, image_id: str = "", generation: int = 1) -> str:
        """Write a receipt as the gateway does; return the image id."""
        image_id = image_id or new_image_id()
        job_id = job_id_of(image_id, generation)
        receipt = Receipt(
            job_id=job_id, image_id=image_id, owner=DEFAULT_OWNER, generation=generation, kind=kind,
            submitted_at=WHEN, lane=Lane.BULK,
        )  # fmt: skip
        body = receipt.model_dump_json().encode()
        await self.tools.files.put(receipt_key(job_id), body, content_type="application/json")
        return image_id

    async def index(self, *events: Event) -> None:
        """Index events as the indexer does."""
        for event in events:
            await index(event, self.tools)

    async def get(self, image_id: str, resource: str) -> dict[str, Any]:
        """Return the history or the lineage of an image."""
        answer = await self.client.get(f"/api/v1/images/{image_id}/{resource}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stored(
        self, stage: str, digest: str = "p", *, version: str = "1", input_sha256: str = "c" * 64
    ) -> ObjectRef:
        """Store a result as the runtime does."""
        lineage = Lineage(
            input_sha256=input_sha256, stage=stage, stage_version=version, code_version="abc", parameters_hash=digest,
            parameters={"quality": 7}, duration_ms=3, event_id="e", trace_id="t", computed_at=WHEN,
            models=(ModelRef(name="m", sha256="f" * 64, backend="torch"),),
        )  # fmt: skip
        key = result_key(DEFAULT_OWNER, input_sha256, stage, version, digest)
        body = StoredResult(result={"any": "thing"}, lineage=lineage).model_dump_json().encode()
        return await self.tools.files.put(key, body, content_type="application/json")


def reported(fact: Fact, **changes: object) -> Fact:
    """Return a fact with changed fields in its report."""
    return fact.model_copy(update={"report": fact.report.model_copy(update=changes)})


@asynccontextmanager
async def archive(folder: Path) -> AsyncIterator[Archive]:
    """Open an archive in a folder."""
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(QdrantSettings(path=folder / "qdrant")) as read_model,
    ):
        parts = QueryComponents(
            files=files,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            authenticator=HeaderAuthenticator(),
        )
        async with client_of(embedded_app(settings(), parts)) as client:
            yield Archive(Tools(read_model, files), client)
