"""The query gateway's responses about images in every state."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.operations.health import Parts, files_part, read_model_part
from schemas.events.envelope import now
from schemas.events.facts import DeletionRequested
from schemas.http.images import ImageBatch
from schemas.http.jobs import JobResult, JobStatus
from schemas.http.search import SearchAnswer
from schemas.stored.results import Colour, ReadText
from schemas.values import (
    DEFAULT_OWNER,
    DEFAULT_STAGES,
    REQUIRED_STAGES,
    Box,
    DetectedObject,
    ImageState,
    Lineage,
    ObjectRef,
    Rendition,
    StageState,
    TextSpan,
    job_id_of,
    new_image_id,
)
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.object_store.results import StoredResult
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import (
    BASE,
    JPEG,
    UPLOAD,
    Encoder,
    Sink,
    client_of,
    refused,
    settings,
    unit_vector,
)
from tests.support.read_models import merge

IMAGES = "/api/v1/images"
SIZES = {"thumbnail": (113, 150), "medium": (450, 600)}
LINEAGE = Lineage(
    input_sha256="0" * 64, stage="ocr", stage_version="1", code_version="t", parameters_hash="p", duration_ms=3,
    event_id="e", computed_at=now(),
)  # fmt: skip


@dataclass
class Broken:
    """An unavailable read model."""

    async def get(self, image_id: str) -> ImageRecord | None:
        raise DependencyUnavailable("no qdrant at 10.0.0.9:6333")

    async def check(self) -> None:
        raise DependencyUnavailable("no qdrant at 10.0.0.9:6333")


@dataclass
class Server:
    """The embedded gateway on a real directory store and the real in-process read model."""

    files: FileStore
    read_model: ReadModel
    sink: Sink
    client: httpx.AsyncClient
    encoder: Encoder
    images: dict[str, bytes] = field(default_factory=dict)

    async def upload(self) -> tuple[str, str]:
        """Upload an image; return its id and its job's."""
        answer = await self.client.post(
            UPLOAD, files={"file": ("cat.jpg", JPEG)}, data={"metadata": '{"album": {"n": null}}'}
        )
        assert answer.status_code == 202, answer.text
        return answer.json()["image_id"], answer.json()["job_id"]

    async def index(
        self,
        image_id: str,
        *,
        state: ImageState = ImageState.COMPLETED,
        owner: str = DEFAULT_OWNER,
        text: str | None = "Total due 41.20 EUR",
        label: str | None = "cat",
        axis: int | None = 0,
        **more: object,
    ) -> ImageRecord:
        """Do what the pipeline does: store renditions and the text, write the record."""
        renditions = []
        for name, (width, height) in SIZES.items():
            data = f"{name} of {image_id}".encode() * 20_000
            key = image_key(image_id, 1, f"{name}.webp")
            ref = await self.files.put(key, data, content_type="image/webp")
            self.images[f"{image_id}/{name}"] = data
            renditions.append(
                Rendition(name=name, object=ref, width=width, height=height, aspect_ratio=width / height, format="webp")
            )
        result = None
        if text is not None:
            span = TextSpan(text=text, confidence=0.98, polygon=((0, 0), (1, 0), (1, 1), (0, 1)), engine="tesseract")
            read = ReadText(content=text, spans=(span,), policy="auto")
            stored = StoredResult(result=read.model_dump(mode="json"), lineage=LINEAGE)
            result = await self.files.put(
                f"results/{owner}/{image_id}.json", stored.model_dump_json().encode(), content_type="application/json"
            )
        done = StageRecord(state=StageState.DONE, version="1", duration_ms=41)
        box = Box(x=0.1, y=0.2, width=0.3, height=0.5)
        found = DetectedObject(label=label or "", confidence=0.91, box=box, pixels=box)
        record = ImageRecord.model_validate(
            {
                "image_id": image_id,
                "owner": owner,
                "generation": 1,
                "state": state,
                "required": REQUIRED_STAGES,
                "stages": {
                    "sanitizer": done,
                    "resizer": done,
                    "ocr": done.model_copy(update={"result": result}),
                    "detector": done,
                    "embedder": StageRecord(state=StageState.SKIPPED, reason="model-unavailable")
                    if axis is None
                    else done,
                },
                "context": {"album": {"n": None}},
                "width": 3024,
                "height": 4032,
                "dominant_colour": "#3A5F8C",
                "palette": (Colour(hex="#3A5F8C", share=1),),
                "thumbhash": "abc=",
                "renditions": tuple(renditions),
                "text": text,
                "objects": (found,) if label else (),
                "labels": (label,) if label else (),
                "has_vector": axis is not None,
                "submitted_at": now(),
                "finished_at": now(),
                **more,
            }
        )
        await self.read_model.begin(record)
        if axis is not None:
            await merge(self.read_model, image_id, 1, {}, vector=unit_vector(axis))
        return record


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The whole gateway with real components and an in-memory event sink."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        sink, encoder = Sink(), Encoder()
        readiness = Parts({"storage": files_part(files), "read-model": read_model_part(read_model)}, timeout_s=5)
        app = embedded_app(
            settings(),
            QueryComponents(files=files, events=sink, read_model=read_model, encoder=encoder, readiness=readiness),
        )
        async with client_of(app) as client:
            yield Server(files, read_model, sink, client, encoder)


async def test_status_is_available_after_the_202(server: Server) -> None:
    """Before any agent runs, the job is processing and every stage pending."""
    image_id, job_id = await server.upload()
    answer = await server.client.get(f"{IMAGES}/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["retry-after"]
    status = JobStatus.model_validate_json(answer.content)
    assert (status.image_id, status.job_id, status.status) == (image_id, job_id, ImageState.PROCESSING)
    assert {name: stage.state for name, stage in status.stages.items()} == dict.fromkeys(DEFAULT_STAGES, "pending")
    assert status.created_at
    for path in (f"jobs/{job_id}/result", image_id, f"{image_id}/all", f"{image_id}/direct"):
        refused(await server.client.get(f"{IMAGES}/{path}"), 409, "not-finished")


async def test_status_follows_the_read_model(server: Server) -> None:
    """Once the read model has the run, the status shows reported stages and pending ones."""
    image_id, job_id = await server.upload()
    record = ImageRecord(
        image_id=image_id, owner=DEFAULT_OWNER, generation=1, required=REQUIRED_STAGES, submitted_at=now()
    )
    await server.read_model.begin(record)
    done = StageRecord(state=StageState.DONE, version="1", duration_ms=41, attempts=2)
    await merge(server.read_model, image_id, 1, {}, stages={"sanitizer": done})
    stages = (await server.client.get(f"{IMAGES}/jobs/{job_id}")).json()["stages"]
    assert stages["sanitizer"] == {"state": "done", "attempts": 2, "duration_ms": 41, "version": "1"}
    assert stages["ocr"] == {"state": "pending"}
    refused(await server.client.get(f"{IMAGES}/jobs/{job_id}/result"), 409, "not-finished")


async def test_the_result_of_a_completed_job_is_the_documented_body(server: Server) -> None:
    """A completed job's result has exactly the documented fields, the client's metadata untouched."""
    image_id, job_id = await server.upload()
    await server.index(image_id, axis=None)
    answer = await server.client.get(f"{IMAGES}/jobs/{job_id}/result")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["image_id"], body["job_id"], body["status"]) == (image_id, job_id, "completed")
    assert body["urls"]["thumbnail"].startswith(f"{BASE}{IMAGES}/{image_id}/direct?size=thumbnail")
    metadata = body["metadata"]
    assert (metadata["dominant_color"], metadata["thumbhash"]) == ("#3A5F8C", "abc=")
    assert metadata["original_dimensions"] == {"width": 3024, "height": 4032}
    thumbnail = metadata["variants"]["thumbnail"]
    assert thumbnail == {
        "width": 113,
        "height": 150,
        "aspect_ratio": 113 / 150,
        "format": "webp",
        "size_bytes": len(server.images[f"{image_id}/thumbnail"]),
    }
    assert metadata["context"] == {"album": {"n": None}}
    assert body["text"]["content"] == "Total due 41.20 EUR"
    (span,) = body["text"]["spans"]
    assert (span["confidence"], span["engine"], span["polygon"][2]) == (0.98, "tesseract", [1, 1])
    (found,) = body["objects"]
    assert found["label"] == "cat"
    assert found["box"] == {"x": 0.1, "y": 0.2, "width": 0.3, "height": 0.5}
    assert body["stages"]["sanitizer"] == {"state": "done", "attempts": 1, "duration_ms": 41, "version": "1"}
    assert body["stages"]["embedder"] == {"state": "skipped", "reason": "model-unavailable"}
    assert body["created_at"]
    assert body["completed_at"]
    JobResult.model_validate(body)


async def test_a_rejected_image_has_a_result_with_the_reason(server: Server) -> None:
    """The result of a rejected image is 200 with its code and message; it has no sizes."""
    image_id, job_id = await server.upload()
    code, message = "truncated-image", "The file ends before the image does."
    rejected = StageRecord(state=StageState.REJECTED, reason=code, message=message)
    record = ImageRecord(
        image_id=image_id, owner=DEFAULT_OWNER, generation=1, state=ImageState.REJECTED, error_code=code,
        error_message=message, stages={"sanitizer": rejected},
    )  # fmt: skip
    await server.read_model.begin(record)
    for path in (f"jobs/{job_id}", f"jobs/{job_id}/result"):
        body = (await server.client.get(f"{IMAGES}/{path}")).json()
        assert body["status"] == "rejected"
        assert body["error"] == {"code": code, "message": message}
    refused(await server.client.get(f"{IMAGES}/{image_id}"), 404, "no-such-size")


async def test_the_sizes_of_an_image(server: Server) -> None:
    """One size, all sizes, and an unknown size, with their URLs and measures."""
    image_id, _ = await server.upload()
    await server.index(image_id)
    medium = (await server.client.get(f"{IMAGES}/{image_id}")).json()
    assert (medium["size"], medium["width"], medium["height"], medium["format"]) == ("medium", 450, 600, "webp")
    sizes = (await server.client.get(f"{IMAGES}/{image_id}/all")).json()["sizes"]
    assert list(sizes) == list(SIZES)
    assert sizes["medium"] == medium
    problem = refused(await server.client.get(f"{IMAGES}/{image_id}?size=huge"), 404, "no-such-size")
    assert "thumbnail, medium" in problem.detail


async def test_the_bytes_of_a_size_can_be_cached(server: Server) -> None:
    """The URL in a response returns exactly the stored bytes, immutable, and 304 for a matching ETag."""
    image_id, job_id = await server.upload()
    await server.index(image_id)
    url = (await server.client.get(f"{IMAGES}/jobs/{job_id}")).json()["urls"]["thumbnail"]
    answer = await server.client.get(url)
    data = server.images[f"{image_id}/thumbnail"]
    assert answer.content == data
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in answer.headers["cache-control"]
    etag = answer.headers["etag"]
    assert etag == f'"{hashlib.sha256(data).hexdigest()}"'
    for tag in (etag, f'"other", W/{etag}', "*"):
        again = await server.client.get(url, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
    assert (await server.client.get(url, headers={"if-none-match": '"other"'})).status_code == 200
    plain = await server.client.get(f"{IMAGES}/{image_id}/direct?size=thumbnail")
    assert plain.headers["cache-control"] == "private, no-cache"


async def test_a_batch_has_an_image_or_an_error_per_id(server: Server) -> None:
    """A batch returns the available images in order, and an error for each of the others."""
    ready = [(await server.upload())[0] for _ in range(3)]
    for image_id in ready:
        await server.index(image_id)
    early, _ = await server.upload()
    unknown = new_image_id()
    await server.client.delete(f"{IMAGES}/{ready[2]}")
    wanted = ",".join([ready[1], early, unknown, "x", ready[0], ready[2]])
    answer = await server.client.get(f"{IMAGES}/batch", params={"image_ids": wanted, "size": "thumbnail"})
    batch = ImageBatch.model_validate_json(answer.content)
    assert [image.image_id for image in batch.images] == [ready[1], ready[0]]
    assert {error.image_id: error.code for error in batch.errors} == {
        early: "not-finished", unknown: "not-found", "x": "not-found", ready[2]: "gone",
    }  # fmt: skip
    many = ",".join(new_image_id() for _ in range(51))
    refused(await server.client.get(f"{IMAGES}/batch", params={"image_ids": many}), 422, "invalid-field")
    assert (await server.client.get(f"{IMAGES}/batch", params={"image_ids": many[37:]})).status_code == 200


@pytest.mark.parametrize("indexed", [True, False])
async def test_a_deleted_image_is_hidden_immediately(server: Server, indexed: bool) -> None:
    """From the 202 of its deletion an image is in no response, before the indexer processes the event."""
    image_id, job_id = await server.upload()
    if indexed:
        await server.index(image_id)
    answer = await server.client.delete(f"{IMAGES}/{image_id}")
    assert answer.status_code == 202, answer.text
    assert answer.json()["job_id"] == job_id_of(image_id, 2)
    topic, event = server.sink.sent[-1]
    assert topic is topics.FACTS
    assert isinstance(event, DeletionRequested)
    assert (event.image_id, event.generation) == (image_id, 2)
    for path in (image_id, f"{image_id}/all", f"{image_id}/direct", f"jobs/{job_id}", f"jobs/{job_id}/result"):
        refused(await server.client.get(f"{IMAGES}/{path}"), 410, "gone")
    found = SearchAnswer.model_validate_json((await server.client.get("/api/v1/search?q=cat")).content)
    assert not found.items
    assert (await server.client.get(answer.headers["location"])).json()["status"] == "processing"

    again = await server.client.delete(f"{IMAGES}/{image_id}")
    assert again.json()["job_id"] == job_id_of(image_id, 2)
    assert server.sink.sent[-1][1].id == event.id

    await server.read_model.write_tombstone(image_id, DEFAULT_OWNER, 2)
    assert (await server.client.get(answer.headers["location"])).json()["status"] == "deleted"
    refused(await server.client.get(f"{IMAGES}/{image_id}"), 410, "gone")
    refused(await server.client.delete(f"{IMAGES}/{image_id}"), 410, "gone")


async def test_an_unconfirmed_deletion_changes_nothing(server: Server) -> None:
    """If Kafka does not take the deletion, the response is 503 and the image still exists."""
    image_id, _ = await server.upload()
    await server.index(image_id)
    server.sink.unavailable = True
    refused(await server.client.delete(f"{IMAGES}/{image_id}"), 503, "dependency-unavailable")
    assert (await server.client.get(f"{IMAGES}/{image_id}")).status_code == 200


async def test_another_owners_image_is_not_found(server: Server) -> None:
    """Every endpoint answers for another owner's image as for an unknown id."""
    image_id = new_image_id()
    await server.index(image_id, owner="rival")
    for path in (image_id, f"{image_id}/all", f"{image_id}/direct", f"jobs/{image_id}.1", f"jobs/{image_id}.1/result"):
        refused(await server.client.get(f"{IMAGES}/{path}"), 404, "not-found")
    refused(await server.client.delete(f"{IMAGES}/{image_id}"), 404, "not-found")
    refused(await server.client.post("/api/v1/search/image", json={"image_id": image_id}), 404, "not-found")
    assert not (await server.client.get("/api/v1/search?q=cat")).json()["items"]


@pytest.mark.parametrize("job_id", ["x", "x.1", f"{'0' * 8}-0000-0000-0000-{'0' * 12}.1", "..%2Fx.1", "%00.1"])
async def test_an_unknown_job_is_404(server: Server, job_id: str) -> None:
    """A malformed or unknown job id is not found."""
    refused(await server.client.get(f"{IMAGES}/jobs/{job_id}"), 404, "not-found")


async def test_a_search_merges_meaning_text_and_labels(server: Server) -> None:
    """With CLIP an image found by meaning and label comes first, with its matches; dissimilar images are absent."""
    cat, bus, memo = [(await server.upload())[0] for _ in range(3)]
    await server.index(cat, axis=0, label="cat", text="")
    await server.index(bus, axis=1, label="bus", text="")
    await server.index(memo, axis=None, label=None, text="The cat sat on the mat")
    body = (await server.client.get("/api/v1/search", params={"q": "cat"})).json()
    answer = SearchAnswer.model_validate(body)
    assert answer.by_meaning
    assert answer.reason is None
    found = {item.image_id: item for item in answer.items}
    assert answer.items[0].image_id == cat
    assert set(found[cat].matched) == {"meaning", "label"}
    assert found[cat].similarity == 1
    assert found[memo].matched == ("text",)
    assert "cat sat" in (found[memo].text or "")
    assert bus not in found
    assert found[cat].urls["thumbnail"].startswith(BASE)
    one = (await server.client.get("/api/v1/search", params={"q": "cat", "limit": 1})).json()
    assert [item["image_id"] for item in one["items"]] == [cat]


async def test_a_search_without_clip_still_finds_words(server: Server) -> None:
    """Without the model a search uses text and labels and returns the reason."""
    image_id, _ = await server.upload()
    await server.index(image_id)
    server.encoder.reason = "the weights are not there"
    answer = SearchAnswer.model_validate((await server.client.get("/api/v1/search?q=total due")).json())
    assert (answer.by_meaning, answer.reason) == (False, "the weights are not there")
    assert [item.matched for item in answer.items] == [("text",)]
    health = (await server.client.get("/api/v1/health")).json()
    assert (health["status"], health["ready"]) == ("degraded", True)
    answer_to_image = await server.client.post("/api/v1/search/image", files={"file": ("a.jpg", JPEG)})
    refused(answer_to_image, 503, "model-unavailable")


async def test_a_search_by_image(server: Server) -> None:
    """A known image or an uploaded file finds similar images; the image itself is excluded."""
    first, second, other = [(await server.upload())[0] for _ in range(3)]
    await server.index(first, axis=0)
    await server.index(second, axis=0)
    await server.index(other, axis=None)
    answer = await server.client.post("/api/v1/search/image", json={"image_id": first})
    assert [item["image_id"] for item in answer.json()["items"]] == [second]
    answer = await server.client.post("/api/v1/search/image", files={"file": ("a.jpg", JPEG)}, data={"limit": "1"})
    assert len(answer.json()["items"]) == 1
    assert answer.json()["by_meaning"] is True
    refused(await server.client.post("/api/v1/search/image", json={"image_id": other}), 409, "no-vector")
    png = b"\x89PNG\r\n\x1a\n" + bytes(80)
    refused(await server.client.post("/api/v1/search/image", files={"file": ("a", png)}), 422, "corrupt-image")
    refused(await server.client.post("/api/v1/search/image", json={"image": first}), 422, "invalid-field")
    refused(
        await server.client.post("/api/v1/search/image", files={"file": ("a", b"x" * 99)}), 415, "unsupported-format"
    )


@pytest.mark.parametrize("query", ["", "q=", "q=%20", "q=" + "x" * 501, "q=a&limit=0", "q=a&limit=x"])
async def test_a_bad_search_is_refused(server: Server, query: str) -> None:
    """A search without words, with too many, or with an invalid limit is rejected."""
    refused(await server.client.get(f"/api/v1/search?{query}"), 422, "invalid-field")


async def test_an_unavailable_read_model_is_503(server: Server) -> None:
    """Without the read model a job is 503 with Retry-After, exposes no address, and the gateway is not ready."""
    broken: ReadModel = Broken()  # type: ignore[assignment]
    readiness = Parts({"read-model": read_model_part(broken)}, timeout_s=1)
    app = embedded_app(
        settings(),
        QueryComponents(files=server.files, events=server.sink, read_model=broken, encoder=None, readiness=readiness),
    )
    _, job_id = await server.upload()
    async with client_of(app) as client:
        answer = await client.get(f"{IMAGES}/jobs/{job_id}")
        refused(answer, 503, "dependency-unavailable")
        assert answer.headers["retry-after"]
        assert "10.0.0.9" not in answer.text
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        part = ready.json()["parts"]["read-model"]
        assert (part["ok"], part["state"], part["detail"]) == (False, "down", "does not answer")


async def test_text_without_a_stored_result_comes_from_the_record(server: Server) -> None:
    """If the stored spans are missing, the result still has the text."""
    image_id, job_id = await server.upload()
    record = await server.index(image_id)
    stored = record.stages["ocr"].result
    assert isinstance(stored, ObjectRef)
    await server.files.delete(stored.key)
    body = (await server.client.get(f"{IMAGES}/jobs/{job_id}/result")).json()
    assert (body["text"]["content"], body["text"]["spans"]) == ("Total due 41.20 EUR", [])


async def test_the_embedded_gateway_serves_everything(server: Server) -> None:
    """The embedded gateway has a landing page, the docs, the OpenAPI document and is ready."""
    landing = (await server.client.get("/")).json()
    assert landing["ways_in"]["upload"] == f"POST {UPLOAD}"
    page = (await server.client.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 3
    for place in loaded:
        assert place.startswith("/"), "the page must not load anything from elsewhere"
        assert (await server.client.get(place)).status_code == 200
    paths = (await server.client.get("/openapi.json")).json()["paths"]
    assert {UPLOAD, f"{IMAGES}/jobs/{{job_id}}/result", "/api/v1/search/image", "/health/ready", "/metrics"} <= set(
        paths
    )
    assert (await server.client.get("/health/ready")).json()["status"] == "ok"


async def test_the_openapi_document_is_consistent(server: Server) -> None:
    """Every reference in the OpenAPI document resolves, and every 4xx of a route is a problem."""
    document = (await server.client.get("/openapi.json")).json()
    references: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            references.extend([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert references
    for reference in references:
        place: object = document
        for step in reference.removeprefix("#/").split("/"):
            assert isinstance(place, dict)
            assert step in place, reference
            place = place[step]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status.startswith("4"):
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
