"""The YOLO detector on both backends compared with ultralytics' own predict, and the detector agent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.core.detect import Detection, overlap
from agents.models.weights import Unavailable, WrongAnswer, find
from agents.models.yolo_detector import YoloDetector, find_yolo
from agents.stages import detector as agent
from schemas.stored.results import DetectedObjects
from schemas.values import ErrorCode, StageReport
from streams import topics
from streams.errors import NotReady, ObjectGone
from streams.object_store.factory import open_files
from streams.settings import FilesSettings, ModelsSettings
from streams.stage import Announcement, Skip
from streams.telemetry.health_board import Condition
from tests.support.masters import missing_master, resources, store

pytestmark = pytest.mark.lengthy


@pytest.fixture(scope="module")
def settings(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelsSettings:
    return ModelsSettings(dir=models_dir, cache=tmp_path_factory.mktemp("cache"), download=False)


@pytest.fixture(scope="module")
def openvino(settings: ModelsSettings) -> YoloDetector:
    return YoloDetector(find_yolo(settings), settings)


@pytest.fixture(scope="module")
def torch(settings: ModelsSettings) -> YoloDetector:
    return YoloDetector(find_yolo(settings), settings.model_copy(update={"backend": "torch"}))


@pytest.fixture(scope="module")
def photos(images_dir: Path) -> Iterator[dict[str, Image.Image]]:
    import ultralytics  # noqa: PLC0415 - seconds, and only after YoloDetector has silenced it

    paths = [*(Path(ultralytics.__file__).parent / "assets").glob("*.jpg"), *(images_dir / "photos").iterdir()]
    yield {path.name: Image.open(path).convert("RGB") for path in sorted(paths)}


def found_in(detector: YoloDetector, image: Image.Image) -> list[Detection]:
    return detector.detect([detector.prepare(image)])[0]


def test_torch_boxes_are_those_of_ultralytics_own_predict(torch: YoloDetector, photos: dict[str, Image.Image]) -> None:
    """Every photo has the same objects in the same order, boxes within a hundredth of a pixel."""
    from ultralytics import YOLO  # noqa: PLC0415

    theirs = YOLO(torch.weights.path)
    for name, photo in photos.items():
        bgr = np.ascontiguousarray(np.asarray(photo)[..., ::-1])
        boxes = theirs.predict(bgr, conf=0.25, iou=0.7, verbose=False, device="cpu")[0].boxes
        ours = found_in(torch, photo)
        assert [one.label for one in ours] == [theirs.names[int(index)] for index in boxes.cls], name
        corners = [(one.left, one.top, one.right, one.bottom) for one in ours]
        np.testing.assert_allclose(np.reshape(corners, (-1, 4)), boxes.xyxy.numpy(), atol=0.01)
        np.testing.assert_allclose([one.confidence for one in ours], boxes.conf.numpy(), atol=1e-4)


def agreement(some: list[Detection], others: list[Detection]) -> list[float]:
    """Return for each object the others' best overlap with it under the same label."""
    return [max((overlap(one, o) for o in others if o.label == one.label), default=0.0) for one in some]


def test_openvino_in_float32_finds_what_torch_finds(
    settings: ModelsSettings, torch: YoloDetector, photos: dict[str, Image.Image]
) -> None:
    """The conversion changes nothing: the same labels, and boxes that overlap by 0.99, on every photo."""
    exact = YoloDetector(find_yolo(settings), settings, exact=True)
    for name, photo in photos.items():
        ours, theirs = found_in(exact, photo), found_in(torch, photo)
        assert [one.label for one in ours] == [one.label for one in theirs], name
        assert min(agreement(ours, theirs), default=1.0) > 0.99, name


def test_openvino_in_native_precision_finds_torchs_confident_objects(
    openvino: YoloDetector, torch: YoloDetector, photos: dict[str, Image.Image]
) -> None:
    """In the processor's native precision each finds the other's confident objects: overlap at least 0.8, mean 0.97.

    With bfloat16, one of two nearly equal candidates for one object may win instead of the other.
    """
    assert (openvino.backend, torch.backend) == ("openvino", "torch")
    overlaps: list[float] = []
    for photo in photos.values():
        ours, theirs = found_in(openvino, photo), found_in(torch, photo)
        overlaps += agreement([one for one in ours if one.confidence >= 0.4], theirs)
        overlaps += agreement([one for one in theirs if one.confidence >= 0.4], ours)
    assert min(overlaps) > 0.8
    assert np.mean(overlaps) > 0.97


def test_an_images_objects_do_not_depend_on_its_batch(openvino: YoloDetector, photos: dict[str, Image.Image]) -> None:
    """In a batch of photos of different shapes each gives the same as on its own."""
    together = openvino.detect([openvino.prepare(photo) for photo in photos.values()])
    assert together == [found_in(openvino, photo) for photo in photos.values()]


@pytest.mark.parametrize("file", ["yolov8n_int8.onnx", "yolo11n_int8.onnx"])
def test_onnx_exports_of_ultralytics_are_loaded_too(
    settings: ModelsSettings, photos: dict[str, Image.Image], file: str
) -> None:
    """An .onnx file has its own names and input size; it finds the persons and the bus."""
    detector = YoloDetector(find("yolov8n", settings, own=file), settings)
    detector.check()
    found = [one.label for one in found_in(detector, photos["bus.jpg"])]
    assert found.count("person") >= 3
    assert "bus" in found


def test_only_requested_classes_are_reported(settings: ModelsSettings, photos: dict[str, Image.Image]) -> None:
    """A class filter drops the others; a class that the weights lack is refused by name."""
    only = YoloDetector(find_yolo(settings), settings, classes=("bus",))
    assert {one.label for one in found_in(only, photos["bus.jpg"])} == {"bus"}
    with pytest.raises(ValueError, match="unicorn"):
        YoloDetector(find_yolo(settings), settings, classes=("bus", "unicorn"))


def test_a_higher_threshold_reports_less(settings: ModelsSettings, photos: dict[str, Image.Image]) -> None:
    """No object below the threshold is reported, and no more objects than allowed."""
    strict = YoloDetector(find_yolo(settings), settings, confidence=0.8, max_objects=2)
    found = found_in(strict, photos["bus.jpg"])
    assert len(found) == 2
    assert all(one.confidence > 0.8 for one in found)


def test_a_detector_that_misses_the_golden_photo_is_detected(settings: ModelsSettings) -> None:
    """Weights that answer all images alike, or miss the bus, fail the golden check."""
    blind = YoloDetector(find_yolo(settings), settings)
    blind.check()
    run = blind._graph.run
    object.__setattr__(blind._graph, "run", lambda x: np.zeros_like(run(x)))
    with pytest.raises(WrongAnswer, match="equal answers"):
        blind.check()
    object.__setattr__(blind._graph, "run", lambda x: run(x) * np.float32(np.nan))
    with pytest.raises(WrongAnswer, match="NaN"):
        blind.check()
    object.__setattr__(blind._graph, "run", lambda x: run(x[..., ::-1, ::-1].copy() * 0.02))
    with pytest.raises(WrongAnswer, match="person"):
        blind.check()


def test_a_file_that_is_no_model_is_unavailable(settings: ModelsSettings, tmp_path: Path) -> None:
    """Weights that do not load make the model unavailable; the reason shows no path."""
    (tmp_path / "my_yolo.pt").write_bytes(b"no weights")
    own = settings.model_copy(update={"dir": tmp_path, "backend": "torch"})
    with pytest.raises(Unavailable, match="does not load") as caught:
        YoloDetector(find_yolo(own), own)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (2000, 1), (1, 2000), (10_000, 7), (9, 10_000), (641, 1)])
def test_a_thin_image_is_no_error(settings: ModelsSettings, size: tuple[int, int]) -> None:
    """An image whose short side scales to less than a pixel gives boxes within it, if any."""
    detector = YoloDetector(find_yolo(settings), settings)
    (found,) = detector.detect([detector.prepare(Image.new("RGB", size, "white"))])
    assert all(0 <= one.left <= one.right <= size[0] for one in found)


async def test_the_agent_finds_objects_and_one_bad_image_fails_on_its_own(
    settings: ModelsSettings, photos: dict[str, Image.Image], tmp_path: Path
) -> None:
    """A batch with a broken and a missing master returns the photo's objects and an error for the other two."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.DetectorSettings(), lent) as tools:
            bus = await store(files, photos["bus.jpg"])
            answers = await agent.detect([await store(files, b"no image"), bus, missing_master()], tools)
            assert agent.STAGE.probe is not None
            await agent.STAGE.probe(tools)
            assert isinstance(answers[0], OSError)
            assert isinstance(answers[2], ObjectGone)
            result = answers[1]
            assert isinstance(result, DetectedObjects)
            assert {one.label for one in result.objects_found} >= {"person", "bus"}
            assert all(0 <= one.box.x <= one.box.x + one.box.width <= 1 for one in result.objects_found)
            assert agent.STAGE.once is not None
            assert agent.STAGE.once.parameters(bus, tools)["weights"] == result.model.sha256
            report = StageReport(stage="detector", version="1", attempts=1, duration_ms=1)
            emitted = agent.STAGE.once.announce(bus, result, Announcement(report, bus.image.master))
            ((topic, fact),) = emitted.events
            assert (topic, fact.image_id) == (topics.FACTS, bus.image_id)
        assert lent.health.condition() is Condition.OK


async def test_without_weights_the_agent_skips_with_the_reason(tmp_path: Path) -> None:
    """Without weights each image is skipped with the reason, health is degraded, and the process continues."""
    nowhere = ModelsSettings(dir=None, cache=tmp_path / "cache", download=False)
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, nowhere, tmp_path)
        async with agent.STAGE.open(agent.DetectorSettings(), lent) as tools:
            answers = await agent.detect([missing_master(), missing_master()], tools)
        assert lent.health.condition() is Condition.DEGRADED
    for answer in answers:
        assert isinstance(answer, Skip)
        assert (answer.code, answer.reported) == (ErrorCode.MODEL_UNAVAILABLE, True)
        assert "yolov8n.pt" in answer.message


async def test_a_required_model_that_is_missing_stops_the_agent(tmp_path: Path) -> None:
    """With `required`, the agent does not start and names what is missing."""
    nowhere = ModelsSettings(dir=None, cache=tmp_path / "cache", download=False)
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, nowhere, tmp_path)
        with pytest.raises(NotReady, match="yolov8n"):
            async with agent.STAGE.open(agent.DetectorSettings(required=True), lent):
                pytest.fail("the stage opened")


def test_weights_may_be_in_a_read_only_folder(models_dir: Path, tmp_path: Path) -> None:
    """A conversion writes nothing beside the weights."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copyfile(models_dir / "derived_yolov8n_dequant.pt", folder / "my_yolo.pt")
    folder.chmod(0o555)
    own = ModelsSettings(dir=folder, cache=tmp_path / "cache", download=False)
    detector = YoloDetector(find_yolo(own), own)
    assert detector.weights.own
    assert [path.name for path in folder.iterdir()] == ["my_yolo.pt"]
