"""Detection in 100 photos: the detector against a loop over ultralytics' predict. `python -m bench.detection`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agents.models.yolo_detector import YoloDetector, find_yolo
from bench.photos import data_folder, hundred_photos, show
from streams.settings import ModelsSettings

ROUNDS, BATCH = 4, 8


def run(data_dir: Path) -> list[dict[str, Any]]:
    """Return one row: seconds for 100 decoded photos, letterbox to boxes, baseline and ours alternating."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ModelsSettings(dir=data_dir / "models", cache=Path(folder), download=False)
        weights = find_yolo(settings)
        detector = YoloDetector(weights, settings)
        from ultralytics import YOLO  # noqa: PLC0415 - after YoloDetector has set its log level

        yolo = YOLO(weights.path)
        photos = hundred_photos(data_dir)
        arrays = [np.ascontiguousarray(np.asarray(photo)[..., ::-1]) for photo in photos]  # BGR, as predict expects
        for photo, array in list(zip(photos, arrays, strict=True))[:20]:  # warm up with every shape
            detector.detect([detector.prepare(photo)])
            yolo.predict(array, verbose=False, device="cpu")
        baseline_s = ours_s = 0.0
        for at in range(ROUNDS):
            started = time.perf_counter()
            for array in arrays[at::ROUNDS]:
                yolo.predict(array, conf=0.25, iou=0.7, verbose=False, device="cpu")
            between = time.perf_counter()
            some = photos[at::ROUNDS]
            for first in range(0, len(some), BATCH):
                detector.detect([detector.prepare(photo) for photo in some[first : first + BATCH]])
            baseline_s += between - started
            ours_s += time.perf_counter() - between
    return [
        {
            "work": "detection in 100 photos",
            "baseline_s": baseline_s,
            "ours_s": ours_s,
            "ratio": baseline_s / ours_s,
            "target": 2.5,
            "notes": f"ultralytics predict loop on {weights.path.name}; {detector.backend}",
        }
    ]


if __name__ == "__main__":
    show(run(data_folder()))
