"""Feature extraction: shared model calls, isolated failures, and bounded queues."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request
from PIL import Image

from agents.core.decode import Limits as DecodeLimits
from agents.core.sanitize import sanitize
from agents.models.clip_encoder import ClipEncoder, find_clip
from darkroom.processes.clip import open_features, open_tower
from gateway.access.identity import ANONYMOUS, Identity, Scope
from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from gateway.limits.rate_limits import Limits
from gateway.limits.settings import RateLimitSettings
from gateway.protocols import ModelUnavailable, Undecodable
from gateway.search.feature_batching import Batching, Busy, FeatureSettings, open_batching
from schemas.values import ErrorCode, ModelRef, Owner
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.settings import CLIP_ARCHITECTURE, FilesSettings, ModelsSettings, QdrantSettings
from tests.support.gateway_components import (
    JPEG,
    Encoder,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
    unit_vector,
)

MODEL = ModelRef(name="drawn", sha256="c" * 64, backend="paper")
PATH = "/api/v1/features"

Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


REASON = "download of ViT-B-32.pt from https://weights.example.org failed; set DARKROOM_MODELS__DIR"


@dataclass
class As:
    """An authenticator that takes every caller for the same one."""

    caller: Identity

    async def identify(self, request: Request) -> Identity:
        return self.caller


@dataclass
class StubEncoder:
    """An encoder of JPEGs by their last byte. Each model call blocks until `open` is set."""

    prepared: list[int] = field(default_factory=list)
    calls: list[list[int]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    unavailable: str = ""

    async def model(self) -> ModelRef:
        if self.unavailable:
            raise ModelUnavailable(self.unavailable)
        return MODEL

    async def prepare(self, data: bytes) -> int:
        if not data.startswith(JPEG[:4]):
            raise Undecodable(ErrorCode.TRUNCATED_IMAGE, "The file ends before the image does.")
        self.prepared.append(data[-1])
        return data[-1]

    async def until_prepared(self, count: int) -> None:
        """Wait until `count` images are decoded."""
        async with asyncio.timeout(60):
            while len(self.prepared) < count:
                await asyncio.sleep(0.01)

    async def encode(self, prepared: Sequence[int]) -> Sequence[list[float] | Exception]:
        self.calls.append(list(prepared))
        self.called.set()
        await self.open.wait()
        if 99 in prepared:
            raise ValueError("the model cannot take 99")
        return [unit_vector(number) for number in prepared]


@pytest.fixture
def paper() -> StubEncoder:
    return StubEncoder()


@pytest.fixture
async def serve(paper: StubEncoder, tmp_path: Path) -> AsyncIterator[Serving]:
    """Serve the query app with the stub encoder and these batching settings."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):

        @asynccontextmanager
        async def serving(
            *, without: bool = False, limit: str = "none", caller: Identity = ANONYMOUS, **changes: Any
        ) -> AsyncIterator[httpx.AsyncClient]:
            async with open_batching(paper, FeatureSettings(**changes)) as batching:
                features = None if without else batching
                sink = Sink()
                components = QueryComponents(
                    files=files,
                    events=sink,
                    readiness=StubReadiness(),
                    read_model=read_model,
                    features=features,
                    limits=Limits(RateLimitSettings(features=limit)),
                    authenticator=As(caller),
                    encoder=Encoder(reason=REASON),
                )
                async with client_of(query_app(settings(spool_dir=tmp_path), components)) as client:
                    yield client
                assert not sink.sent, "vectors alone are no event"
                assert not [info.key async for info in files.list("originals/")], "nothing is stored"

        yield serving


def jpeg(number: int) -> bytes:
    """Return a stub JPEG of that number."""
    return JPEG + bytes([number])


async def post(client: httpx.AsyncClient, data: bytes, path: str = PATH) -> httpx.Response:
    """Post an image as the raw body."""
    return await client.post(path, content=data, headers={"content-type": "image/jpeg"})


async def test_an_image_is_answered_with_its_vector_and_model(serve: Serving, paper: StubEncoder) -> None:
    """A form, a raw body and the alias path all return the vector, its dimensions, and the weights' hash."""
    paper.open.set()
    async with serve() as client:
        answers = [
            await post(client, jpeg(3)),
            await post(client, jpeg(3), "/extract-features"),
            await client.post(PATH, files={"file": ("cat.jpg", jpeg(3))}),
            await client.post(PATH, content=jpeg(3), headers={"content-type": "application/octet-stream"}),
        ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["vector"] == unit_vector(3)
        assert body["dimensions"] == 512
        assert body["model"] == {"name": "drawn", "weights_sha256": "c" * 64, "backend": "paper"}
        assert body["duration_ms"] >= 0


async def test_concurrent_requests_share_model_calls(serve: Serving, paper: StubEncoder) -> None:
    """Images that arrive during a call share the next one; each request gets its own vector."""
    async with serve(batch_size=8, batch_wait_s=0) as client:
        first = asyncio.create_task(post(client, jpeg(0)))
        await paper.called.wait()
        others = [asyncio.create_task(post(client, jpeg(number))) for number in range(1, 8)]
        await paper.until_prepared(8)
        paper.open.set()
        answers = await asyncio.gather(first, *others)
    assert [answer.json()["vector"] for answer in answers] == [unit_vector(number) for number in range(8)]
    assert [sorted(call) for call in paper.calls] == [[0], [1, 2, 3, 4, 5, 6, 7]]


async def test_a_failed_image_does_not_affect_the_others(serve: Serving, paper: StubEncoder) -> None:
    """In a batch, an image that the decoder or the model rejects fails individually."""
    async with serve(batch_size=8, batch_wait_s=0) as client:
        first = asyncio.create_task(post(client, jpeg(0)))
        await paper.called.wait()
        others = [asyncio.create_task(post(client, jpeg(number))) for number in (1, 99, 2)]
        await paper.until_prepared(4)
        torn = asyncio.create_task(post(client, b"\x89PNG\r\n\x1a\n" + bytes(40)))
        paper.open.set()
        good, bad, also_good = await asyncio.gather(*others)
        assert (await first).status_code == 200
        assert (good.json()["vector"], also_good.json()["vector"]) == (unit_vector(1), unit_vector(2))
        refused(bad, 500, "internal-error")
        problem = refused(await torn, 422, "corrupt-image")
        assert problem.detail == "The file ends before the image does."
    assert [1, 2, 99] in [sorted(call) for call in paper.calls]


async def test_an_image_above_the_queue_limit_is_rejected_immediately(serve: Serving, paper: StubEncoder) -> None:
    """A full queue is 503 with Retry-After before the body is read; later requests succeed."""
    async with serve(queue=2, batch_size=1) as client:
        waiting = [asyncio.create_task(post(client, jpeg(number))) for number in (1, 2)]
        await until_waiting(client, 2)
        answer = await post(client, jpeg(3))
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        paper.open.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await post(client, jpeg(3))).status_code == 200


async def test_the_wait_for_a_vector_is_bounded(serve: Serving, paper: StubEncoder) -> None:
    """After the timeout a request is 503 with Retry-After, and frees its place."""
    async with serve(queue=1, timeout_s=0.2) as client:
        answer = await post(client, jpeg(1))
        assert "in time" in refused(answer, 503, "overloaded").detail
        assert answer.headers["retry-after"]
        paper.open.set()
        async with asyncio.timeout(60):
            while (await post(client, jpeg(2))).status_code != 200:  # on a slow machine 0.2 s may be little
                pass


async def test_a_cancelled_request_frees_the_queue(paper: StubEncoder, tmp_path: Path) -> None:
    """A cancelled image frees its place immediately, and the model is not called for it."""
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    async with open_batching(paper, FeatureSettings(queue=2, batch_size=1, batch_wait_s=0)) as batching:
        first = asyncio.create_task(batching.vectors(paths[:1]))
        await paper.called.wait()
        second = asyncio.create_task(batching.vectors(paths[1:2]))
        await paper.until_prepared(2)
        with pytest.raises(Busy):
            await batching.vectors(paths[2:3])
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(batching.vectors(paths[2:3]))
        paper.open.set()
        assert await first == [unit_vector(0)]
        assert await third == [unit_vector(2)]
    assert paper.calls == [[0], [2]]


async def test_a_disconnect_cancels_the_request(serve: Serving, paper: StubEncoder) -> None:
    """When a waiting client disconnects, its image leaves the queue."""
    sent = 0

    async with serve(queue=1) as client:
        app = client._transport.app  # type: ignore[attr-defined]
        hung_up = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal sent
            sent += 1
            if sent == 1:
                return {"type": "http.request", "body": jpeg(1), "more_body": False}
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH,
            "raw_path": PATH.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"host", b"darkroom.test"), (b"content-type", b"image/jpeg")],
            "client": ("127.0.0.1", 1), "server": ("darkroom.test", 80),
        }  # fmt: skip
        request = asyncio.create_task(app(scope, receive, send))
        await paper.called.wait()
        refused(await post(client, jpeg(2)), 503, "overloaded")
        hung_up.set()
        await request
        paper.open.set()
        assert (await post(client, jpeg(2))).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/jpeg", 400, "empty-file"),
        (b"GIF?" * 20, "image/gif", 415, "unsupported-format"),
        (JPEG + bytes(2000), "image/jpeg", 413, "file-too-large"),
        (JPEG, "text/plain", 415, "unsupported-media-type"),
        (b'{"image_id": "nobody"}', "application/json", 404, "not-found"),
        (b'{"image_id": "x", "model": "y"}', "application/json", 400, "unknown-field"),
    ],
)
async def test_invalid_requests_are_rejected_with_a_reason(
    serve: Serving, content: bytes, kind: str, status: int, code: str
) -> None:
    """No bytes, no image, too many bytes, another type, an unknown id and an unknown field have their own problems."""
    async with serve(max_bytes=1000) as client:
        refused(await client.post(PATH, content=content, headers={"content-type": kind}), status, code)


@pytest.mark.parametrize("path", [f"{PATH}/batch", "/extract-features-batch"])
async def test_several_images_are_answered_individually(serve: Serving, paper: StubEncoder, path: str) -> None:
    """Of five files one is truncated, one no image, one too large: two vectors in order, three errors with codes."""
    paper.open.set()
    torn = b"\x89PNG\r\n\x1a\n" + bytes(40)
    sent = [("a.jpg", jpeg(1)), ("b.png", torn), ("c.txt", b"words " * 20), ("d.jpg", JPEG * 10), ("e.jpg", jpeg(2))]
    async with serve(max_bytes=1000, batch_size=16) as client:
        answer = await client.post(path, files=[("files", file) for file in sent])
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert [(item["index"], item["filename"]) for item in body["items"]] == [(0, "a.jpg"), (4, "e.jpg")]
        assert [item["vector"] for item in body["items"]] == [unit_vector(1), unit_vector(2)]
        errors = {error["filename"]: error["code"] for error in body["errors"]}
        assert errors == {"b.png": "truncated-image", "c.txt": "unsupported-format", "d.jpg": "file-too-large"}
        assert (body["dimensions"], body["model"]["name"]) == (512, "drawn")


async def test_a_batch_is_bounded(serve: Serving, paper: StubEncoder) -> None:
    """Too many files are 413; a batch beyond the queue is 503 as a whole; one without usable images is 422."""
    paper.open.set()
    async with serve(max_files=3, queue=2) as client:
        files = [("files", (f"{number}.jpg", jpeg(number))) for number in range(4)]
        refused(await client.post(f"{PATH}/batch", files=files), 413, "too-many-files")
        refused(await client.post(f"{PATH}/batch", files=files[:3]), 503, "overloaded")
        assert (await client.post(f"{PATH}/batch", files=files[:2])).status_code == 200
        problem = refused(await client.post(f"{PATH}/batch", files={"file": ("x", b"text")}), 422, "nothing-accepted")
        assert problem.errors[0].field == "files[0]"
        refused(await client.post(f"{PATH}/batch", content=jpeg(1)), 415, "unsupported-media-type")


async def test_each_image_counts_against_the_owner_s_limit(serve: Serving, paper: StubEncoder) -> None:
    """With 3 per hour, one image and a batch of two are answered; a larger batch is 429 and not counted."""
    paper.open.set()
    async with serve(limit="3/hour") as client:
        files = [("files", (f"{number}.jpg", jpeg(number))) for number in range(3)]
        assert (await post(client, jpeg(1))).status_code == 200
        refused(await client.post(f"{PATH}/batch", files=files), 429, "rate-limited")
        assert (await client.post(f"{PATH}/batch", files=files[:2])).status_code == 200
        refused(await post(client, jpeg(1)), 429, "rate-limited")


async def test_without_weights_the_response_has_the_reason(serve: Serving, paper: StubEncoder) -> None:
    """503 `model-unavailable` with the reason, before the image is read; also without any encoder."""
    paper.unavailable = "no ViT-B-32.pt in models.cache"
    async with serve() as client:
        assert "no ViT-B-32.pt" in refused(await post(client, b"no image"), 503, "model-unavailable").detail
    async with serve(without=True) as client:
        refused(await post(client, jpeg(1)), 503, "model-unavailable")


@pytest.mark.parametrize("operator", [True, False])
async def test_only_operators_see_why_a_model_is_unavailable(
    serve: Serving, paper: StubEncoder, operator: bool
) -> None:
    """Settings and URLs are shown to callers with the scope `admin`; others get a plain sentence, in every response."""
    paper.unavailable = REASON
    scopes = frozenset(Scope) if operator else frozenset(Scope) - {Scope.ADMIN}
    async with serve(caller=Identity(Owner("anna"), scopes, "key:1")) as client:
        key = {"X-API-Key": "dk_"}
        answers = [
            refused(await post(client, b"no image"), 503, "model-unavailable").detail,
            refused(
                await client.post("/api/v1/search/image", files={"file": ("a.jpg", jpeg(1))}), 503, "model-unavailable"
            ).detail,
            (await client.get("/api/v1/search", params={"q": "cat"})).json()["reason"],
            (await client.get("/api/v1/health", headers=key)).json()["parts"]["search-by-meaning"]["detail"],
        ]
        ready = (await client.get("/health/ready", headers=key)).json()["parts"]["search-by-meaning"]
        anonymous = (await client.get("/api/v1/health")).json()["parts"]["search-by-meaning"]
    for detail in answers:
        assert (REASON in detail) == operator
        assert operator or "model is not loaded" in detail
    for part in (ready, anonymous):
        assert (part["ok"], part["detail"]) == (False, "the model is not loaded")


async def until_waiting(client: httpx.AsyncClient, count: int) -> None:
    """Wait until `count` images are in progress."""
    async with asyncio.timeout(60):
        while f"darkroom_features_waiting_images {count}.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelsSettings:
    """Settings with ViT-B/32 and seeded random weights, for torch: nothing is converted."""
    import open_clip  # noqa: PLC0415 - seconds
    import torch  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    torch.save(open_clip.create_model(CLIP_ARCHITECTURE, pretrained=None).state_dict(), folder / "random.pt")
    cache = tmp_path_factory.mktemp("cache")
    return ModelsSettings(dir=folder, cache=cache, download=False, backend="torch", clip_weights="random.pt")


async def test_real_images_get_the_vectors_of_the_pipeline(
    models: ModelsSettings, images_dir: Path, tmp_path: Path
) -> None:
    """With ViT-B/32, concurrent photos have the vectors of their masters; a truncated file between them fails alone."""
    photos = sorted((images_dir / "clip_golden").glob("*.jpg"))[:3]
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos[0].read_bytes()[:300])
    own = FeatureSettings(decoders=1)
    async with (
        open_tower(models) as tower,
        open_features(tower, decoders=own.decoders, max_bytes=own.max_bytes) as encoder,
        open_batching(encoder, own) as batching,
    ):
        model = await batching.model()
        answers = await batching.vectors([photos[0], torn, *photos[1:]])
    weights = find_clip(models)
    assert (model.name, model.sha256, model.backend) == ("random", weights.sha256, "torch")
    bad = answers.pop(1)
    assert isinstance(bad, Undecodable)
    assert bad.code in set(ErrorCode)
    expected = ClipEncoder(weights, models).encode_images([master_of(path) for path in photos])
    found = np.array(answers)
    assert found.shape == (3, 512)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert float((found * expected).sum(axis=1).min()) >= 0.99999


async def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Without weights the encoder names the missing file, without any path."""
    nowhere = ModelsSettings(dir=None, cache=tmp_path / "cache", download=False)
    async with (
        open_tower(nowhere) as tower,
        open_features(tower, decoders=1, max_bytes=1000) as encoder,
        open_batching(encoder, FeatureSettings()) as batching,
    ):
        assert isinstance(batching, Batching)
        with pytest.raises(ModelUnavailable, match=r"ViT-B-32\.pt") as refusal:
            await batching.model()
    assert str(tmp_path) not in str(refusal.value)


def master_of(path: Path) -> Image.Image:
    """Return the master of a photo."""
    limits = DecodeLimits(max_bytes=10_000_000, max_side=10_000, max_pixels=40_000_000, max_frames=100)
    made = sanitize(path.read_bytes(), limits, keep_capture_details=False)
    return Image.open(io.BytesIO(made.master)).convert("RGB")
