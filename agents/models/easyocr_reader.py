"""EasyOCR: CRAFT detects text boxes, a CRNN reads them. CRAFT takes nearly all the time, so it runs on OpenVINO.

CRAFT first runs on a small copy (`probe_side`), which shows whether there is text; if that text is small, it runs again
on a larger copy. It processes overlapping horizontal bands, so that memory does not grow with the image's height. The
boxes are read at full resolution.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import JsonValue

from agents.core.read_text import in_reading_order
from agents.core.text.geometry import Polygon, frame_of
from agents.models.converted import OPENVINO, CompiledModel, backend_of, converted, use_threads
from agents.models.weights import Unavailable, Weights, find
from schemas.values import TextSpan
from streams.settings import ModelsSettings

ENGINE = "easyocr"
DETECTOR, RECOGNISER = "easyocr-craft", "easyocr-english"
_BAND, _OVERLAP = 512, 96  # rows of CRAFT's input; its receptive field reaches less than the overlap
_LARGE_SIDE = 1920  # EasyOCR's own canvas_size is 2560; this took half the time and read a 300 dpi page equally well
_SMALL_LINE = 20.0  # probe pixels: with a lower median line height, detection runs again on the larger copy

Box = tuple[int, int, int, int] | tuple[tuple[float, float], ...]


def find_easyocr(settings: ModelsSettings, languages: Sequence[str]) -> tuple[Weights, Weights]:
    """Return CRAFT's and the recogniser's weights. Raises Unavailable, also for languages without known weights."""
    if set(languages) != {"en"}:
        raise Unavailable(f"EasyOCR has weights for en only, not for {', '.join(languages)}")
    return find(DETECTOR, settings), find(RECOGNISER, settings)


class EasyocrReader:
    """Reads lines anywhere, e.g. in photos of signs. Thread-safe: one call at a time."""

    name = ENGINE

    def __init__(self, craft: Weights, recogniser: Weights, settings: ModelsSettings, *, probe_side: int = 736) -> None:
        """Load CRAFT and the recogniser. Raises Unavailable for weights that do not load."""
        import easyocr  # noqa: PLC0415
        from easyocr.detection import get_textbox  # noqa: PLC0415

        use_threads(settings)
        self.backend = backend_of(settings)
        self.weights = (craft, recogniser)
        self._probe_side = probe_side
        self._lock = threading.Lock()
        networks = settings.cache / "easyocr"  # EasyOCR requires a folder for users' own networks
        try:
            self._reader: Any = easyocr.Reader(
                ["en"],
                gpu=_device(self.backend),
                detector=False,
                download_enabled=False,
                quantize=False,
                verbose=False,
                model_storage_directory=str(recogniser.path.parent),
                user_network_directory=str(networks),
            )
            self._reader.get_textbox = get_textbox
            self._reader.detector = _craft(craft, settings, self.backend)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"EasyOCR does not load its weights: {type(error).__name__}") from error

    def find(self, image: Image.Image) -> list[Polygon]:
        """Return text boxes, from the small copy or, if their text is small, from the larger one.

        An image so thin that the small copy has no rows or columns has none.
        """
        if min(image.size) * self._probe_side < max(image.size):
            return []
        pixels = np.asarray(image.convert("RGB"))
        with self._lock:
            found = self._detect(pixels, self._probe_side)
            largest = max(image.size)
            if found and largest > self._probe_side * 1.2:
                shrunk = self._probe_side / largest
                heights = [(frame_of(box).bottom - frame_of(box).top) * shrunk for box in found]
                if median(heights) < _SMALL_LINE:
                    return self._detect(pixels, _LARGE_SIDE)
            return found

    def read_at(self, image: Image.Image, boxes: Sequence[Polygon]) -> list[TextSpan]:
        """Return the text at boxes of `find`; illegible boxes, and those without pixels, give nothing."""
        boxes = [box for box in boxes if _has_pixels(box, *image.size)]  # EasyOCR raises on an empty crop
        if not boxes:
            return []
        grey = np.asarray(image.convert("L"))
        straight = [_straight(box) for box in boxes if _is_straight(box)]
        slanted = [[list(point) for point in box] for box in boxes if not _is_straight(box)]
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pinned memory and quantisation, which are unused
            answers = self._reader.recognize(grey, straight, slanted, reformat=False)
        spans = [_span(box, text, confidence) for box, text, confidence in answers if text.strip()]
        return in_reading_order(spans)

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return all text of an image in reading order."""
        return self.read_at(image, self.find(image))

    def _detect(self, pixels: npt.NDArray[np.uint8], canvas: int) -> list[Polygon]:
        straight, slanted = self._reader.detect(pixels, canvas_size=canvas, reformat=False)
        boxes = [
            ((float(left), float(top)), (float(right), float(top)), (float(right), float(bottom)),
             (float(left), float(bottom)))
            for left, right, top, bottom in straight[0]
        ]  # fmt: skip
        quads = [tuple((float(x), float(y)) for x, y in box) for box in slanted[0]]
        height, width = pixels.shape[:2]
        return [box for box in (*boxes, *quads) if _has_pixels(box, width, height)]  # CRAFT's input is padded


def _device(backend: str) -> str:
    if backend == OPENVINO:
        return "cpu"
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_straight(box: Polygon) -> bool:
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = box
    return ay == by and bx == cx and cy == dy and dx == ax


def _has_pixels(box: Polygon, width: int, height: int) -> bool:
    """Return whether a box covers at least one pixel of the image in each direction, also along its own sides."""
    frame = frame_of(box)
    across = min(int(frame.right), width) - max(int(frame.left), 0)
    down = min(int(frame.bottom), height) - max(int(frame.top), 0)
    a, b, c, d = box
    along = max(math.dist(a, b), math.dist(c, d))
    aside = max(math.dist(a, d), math.dist(b, c))
    return min(across, down, along, aside) >= 1


def _straight(box: Polygon) -> list[int]:
    frame = frame_of(box)
    return [int(frame.left), int(frame.right), int(frame.top), int(frame.bottom)]


def _span(box: Sequence[Sequence[float]], text: str, confidence: float) -> TextSpan:
    polygon = tuple((float(x), float(y)) for x, y in box)
    sure = float(confidence) if math.isfinite(confidence) else 0.0
    return TextSpan(
        text=text.strip(), confidence=min(max(sure, 0.0), 1.0), polygon=polygon, engine=ENGINE, language="en"
    )


def _load_craft(weights: Weights) -> Any:
    import torch  # noqa: PLC0415
    from easyocr.craft import CRAFT  # noqa: PLC0415
    from easyocr.detection import copyStateDict  # noqa: PLC0415

    net = CRAFT(pretrained=False)
    net.load_state_dict(copyStateDict(torch.load(weights.path, map_location="cpu", weights_only=True)))
    return net.eval()


def _convert(weights: Weights, folder: Path) -> dict[str, JsonValue]:
    import openvino as ov  # noqa: PLC0415
    import torch  # noqa: PLC0415

    class Scores(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """CRAFT's score maps alone; its feature maps are only used in training."""

        def __init__(self) -> None:
            super().__init__()
            self.net = _load_craft(weights)

        def forward(self, x: Any) -> Any:
            return self.net(x)[0]

    with torch.no_grad():
        model = ov.convert_model(Scores().eval(), example_input=torch.zeros(1, 3, 64, 96))
    model.reshape([1, 3, -1, -1])
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return {"part": "craft"}


def _craft(weights: Weights, settings: ModelsSettings, backend: str) -> Any:
    """Return CRAFT with EasyOCR's interface: (1, 3, h, w) tensor in, (score maps (1, h/2, w/2, 2), None) out."""
    import torch  # noqa: PLC0415

    if backend == OPENVINO:
        folder = converted(settings, weights, "craft", lambda to: _convert(weights, to))
        run: Any = CompiledModel(folder / "model.xml", settings)
    else:
        device = _device(backend)
        net = _load_craft(weights).to(device)

        def run(band: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            scores: npt.NDArray[np.float32] = net(torch.from_numpy(band).to(device))[0].cpu().numpy()
            return scores

    def answer(x: Any) -> tuple[Any, None]:
        with torch.inference_mode():
            return torch.from_numpy(_in_bands(x.cpu().numpy(), run)), None

    return answer


def _in_bands(x: npt.NDArray[np.float32], run: Any) -> npt.NDArray[np.float32]:
    """Return a network's half-size maps, computed in overlapping bands."""
    rows = x.shape[2]
    if rows <= _BAND:
        whole: npt.NDArray[np.float32] = run(x)
        return whole
    step = _BAND - 2 * _OVERLAP
    parts: list[npt.NDArray[np.float32]] = []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        low, high = max(start - _OVERLAP, 0), min(stop + _OVERLAP, rows)
        scores = run(np.ascontiguousarray(x[:, :, low:high]))
        parts.append(scores[:, (start - low) // 2 : (start - low) // 2 + (stop - start) // 2])
    return np.concatenate(parts, axis=1)
