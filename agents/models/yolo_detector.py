"""YOLO with ultralytics' letterbox, suppression and scaling; inference by OpenVINO or torch.

Each image is letterboxed on its own (to a multiple of the stride, as `YOLO.predict` does with one image), so that its
boxes never depend on the batch. On a CPU images run one by one: batches were slower there.
"""

from __future__ import annotations

import ast
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import JsonValue

from agents.core.detect import Detection
from agents.models.converted import OPENVINO, CompiledModel, about, backend_of, converted, use_threads
from agents.models.weights import OWN_DETECTORS, Unavailable, Weights, WrongAnswer, find
from streams.settings import ModelsSettings

MODEL = "yolov8n"
# Read by ultralytics on import: no package installs, no network, no output.
_QUIET = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}


def find_yolo(settings: ModelsSettings, own: str | None = None) -> Weights:
    """Return the detector's weights: named, else the manifest's, else the operator's first *yolo*.pt or .onnx."""
    return find(MODEL, settings, own=own, own_patterns=OWN_DETECTORS)


@dataclass(frozen=True, slots=True)
class Letterboxed:
    """A letterboxed image, (height, width, 3) RGB uint8, and its original size."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Graph:
    run: Any  # (n, 3, h, w) float32 -> raw predictions
    names: dict[int, str]
    stride: int
    end2end: bool
    shape: tuple[int, int] | None  # (height, width) if the graph's input is fixed


class YoloDetector:
    """Detects objects with any YOLO weights (.pt or .onnx). Thread-safe."""

    def __init__(
        self,
        weights: Weights,
        settings: ModelsSettings,
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        classes: Sequence[str] = (),
        image_size: int = 640,
        max_objects: int = 300,
        exact: bool = False,
    ) -> None:
        """Load and compile. Raises Unavailable for weights that do not load, ValueError for classes they lack."""
        os.environ.update(_QUIET)
        os.environ.setdefault("YOLO_CONFIG_DIR", str(settings.cache))
        from ultralytics.data.augment import LetterBox  # noqa: PLC0415

        use_threads(settings)
        self.weights = weights
        self.backend = OPENVINO if weights.path.suffix == ".onnx" else backend_of(settings)
        try:
            graph = _open(weights, settings, self.backend, exact=exact)
        except (OSError, RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise Unavailable(f"{weights.path.name} does not load: {type(error).__name__}") from error
        self._graph = graph
        self.labels = tuple(graph.names.values())
        unknown = sorted(set(classes) - set(self.labels))
        if unknown:
            raise ValueError(f"{weights.path.name} has no class {', '.join(unknown)}")
        self._classes = [index for index, name in graph.names.items() if name in classes] or None
        self._confidence, self._iou, self._most = confidence, iou, max_objects
        self._letterbox = LetterBox(graph.shape or image_size, auto=graph.shape is None, stride=graph.stride)

    def prepare(self, image: Image.Image) -> Letterboxed:
        """Return the letterboxed image."""
        # Scaling and padding are the same for all channels, so RGB input gives the same as flipped BGR input.
        pixels = self._letterbox(image=np.asarray(self._thick(image).convert("RGB")))
        return Letterboxed(pixels, image.width, image.height)

    def _thick(self, image: Image.Image) -> Image.Image:
        """Return an image whose sides all have a pixel when scaled for the model: OpenCV raises on an empty one."""
        shape = self._letterbox.new_shape
        side = shape if isinstance(shape, int) else min(shape)
        least = math.ceil(max(image.size) / side)
        size = (max(image.width, least), max(image.height, least))
        return image if size == image.size else image.resize(size)

    def raw(self, prepared: Letterboxed) -> npt.NDArray[np.float32]:
        """Return the model's raw output for one image, before thresholds."""
        chw = np.ascontiguousarray(prepared.pixels.transpose(2, 0, 1)[None], dtype=np.float32)
        answer: npt.NDArray[np.float32] = self._graph.run(chw / np.float32(255))
        return answer

    def detect(self, prepared: Sequence[Letterboxed]) -> list[list[Detection]]:
        """Return the boxes of each image in pixels of the image, most confident first."""
        return [self._detect(one) for one in prepared]

    def _detect(self, one: Letterboxed) -> list[Detection]:
        import torch  # noqa: PLC0415
        from ultralytics.utils.nms import non_max_suppression  # noqa: PLC0415
        from ultralytics.utils.ops import scale_boxes  # noqa: PLC0415

        kept = non_max_suppression(
            torch.from_numpy(self.raw(one)),
            self._confidence,
            self._iou,
            classes=self._classes,
            max_det=self._most,
            end2end=self._graph.end2end,
        )[0]
        kept[:, :4] = scale_boxes(one.pixels.shape[:2], kept[:, :4], (one.height, one.width))
        return [Detection(self._graph.names[int(row[5])], row[4], *row[:4]) for row in kept.tolist()]

    def check(self) -> None:
        """Check that the model answers, and differently for different images. Raises WrongAnswer.

        With COCO's classes it must also find the person and the bus in the photo ultralytics ships.
        """
        import ultralytics  # noqa: PLC0415

        photo = Path(ultralytics.__file__).parent / "assets" / "bus.jpg"
        drawn = self.prepare(Image.linear_gradient("L").resize((320, 240)).convert("RGB"))
        other = self.prepare(Image.effect_mandelbrot((320, 240), (-3, -2.5, 2, 2.5), 100).convert("RGB"))
        first, second = self.raw(drawn), self.raw(other)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise WrongAnswer(f"{self.weights.name} answers NaN or infinity")
        if np.array_equal(first, second):
            raise WrongAnswer(f"{self.weights.name} gives equal answers for different images")
        if {"person", "bus"} <= set(self.labels) and self._classes is None and photo.is_file():
            with Image.open(photo) as image:
                prepared = self.prepare(image)
            found = {one.label for one in self._detect(prepared)}
            if self._confidence <= 0.6 and not {"person", "bus"} <= found:
                raise WrongAnswer(f"{self.weights.name} finds {sorted(found)} in a photo of a person and a bus")


def _open(weights: Weights, settings: ModelsSettings, backend: str, *, exact: bool) -> _Graph:
    if weights.path.suffix == ".onnx":
        return _open_onnx(weights, settings, exact=exact)
    if backend == OPENVINO:
        folder = converted(settings, weights, "yolo", lambda to: _convert(weights, to))
        known = about(folder)
        names = {int(index): str(name) for index, name in known["names"].items()}
        run = CompiledModel(folder / "model.xml", settings, exact=exact)
        return _Graph(run, names, int(known["stride"]), bool(known["end2end"]), None)
    return _open_torch(weights)


def _open_onnx(weights: Weights, settings: ModelsSettings, *, exact: bool) -> _Graph:
    """Return the graph of an ONNX export, with names and stride from the metadata that ultralytics wrote into it."""
    import openvino as ov  # noqa: PLC0415

    info = ov.Core().read_model(weights.path).get_rt_info()["framework"]
    names, stride, task = (str(info[key].value) for key in ("names", "stride", "task"))
    if task != "detect":
        raise ValueError(f"its task is {task}, not detect")
    end2end = "end2end" in info and str(info["end2end"].value) == "True"
    run = CompiledModel(weights.path, settings, exact=exact)
    height, width = run.shape[2:]
    shape = (height, width) if height is not None and width is not None else None
    known: dict[int, str] = ast.literal_eval(names)
    return _Graph(run, known, int(stride), end2end, shape)


def _open_torch(weights: Weights) -> _Graph:
    import torch  # noqa: PLC0415
    from ultralytics import YOLO  # noqa: PLC0415

    yolo = YOLO(weights.path, task="detect")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = yolo.model.float().fuse().eval().to(device)

    def run(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            answer = model(torch.from_numpy(inputs).to(device))
        raw: npt.NDArray[np.float32] = (answer[0] if isinstance(answer, (list, tuple)) else answer).cpu().numpy()
        return raw

    return _Graph(run, dict(yolo.names), int(model.stride.max()), bool(getattr(model, "end2end", False)), None)


def _convert(weights: Weights, folder: Path) -> dict[str, JsonValue]:
    """Let ultralytics export a copy: it writes beside the weights, whose folder may be read-only."""
    from ultralytics import YOLO  # noqa: PLC0415

    copy = folder / "weights.pt"
    shutil.copyfile(weights.path, copy)
    yolo = YOLO(copy, task="detect")
    exported = Path(yolo.export(format="openvino", dynamic=True, verbose=False, device="cpu"))
    graph = next(exported.glob("*.xml"))
    graph.rename(folder / "model.xml")
    graph.with_suffix(".bin").rename(folder / "model.bin")
    shutil.rmtree(exported)
    copy.unlink()
    inner = yolo.model
    return {
        "names": {str(index): name for index, name in yolo.names.items()},
        "stride": int(inner.stride.max()),
        "end2end": bool(getattr(inner, "end2end", False)),
    }
