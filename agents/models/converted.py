"""OpenVINO runs the same weights several times faster on a CPU. Converted once, cached, compiled per process.

A conversion is cached under `models.cache` by the weights' sha256, the converted part and the converter's version. It
is written atomically, since several processes may convert the same weights at once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from agents.models.weights import Weights
from streams.settings import ModelsSettings

Array = npt.NDArray[Any]
OPENVINO, TORCH = "openvino", "torch"


def threads_of(settings: ModelsSettings) -> int:
    """Return how many CPU threads one model may use: the setting, or the cores available to this process."""
    return settings.threads or len(os.sched_getaffinity(0))


def backend_of(settings: ModelsSettings) -> str:
    """Return `openvino` or `torch`: the setting; for `auto`, torch with a CUDA device, else OpenVINO."""
    if settings.backend in {OPENVINO, TORCH}:
        return settings.backend
    if settings.backend != "auto":
        raise ValueError(f"DARKROOM_MODELS__BACKEND is {settings.backend!r}; allowed: auto, openvino, torch")
    if Path("/proc/driver/nvidia/version").exists():  # importing torch costs a second and 200 MB: only with a driver
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            return TORCH
    return OPENVINO


def use_threads(settings: ModelsSettings) -> None:
    """Limit torch and OpenCV to this process's threads: two agents that each use every core slow each other down."""
    import cv2  # noqa: PLC0415
    import torch  # noqa: PLC0415

    cv2.setNumThreads(threads_of(settings))
    torch.set_num_threads(threads_of(settings))


Convert = Callable[[Path], dict[str, JsonValue]]  # writes model.xml into the folder, returns the contents of about.json


def converted(settings: ModelsSettings, weights: Weights, part: str, convert: Convert) -> Path:
    """Return the folder of a conversion (model.xml, model.bin, about.json), creating it if missing."""
    import openvino as ov  # noqa: PLC0415

    version = ov.__version__.split("-")[0]
    folder = settings.cache / "openvino" / f"{weights.sha256[:24]}-{part}-{version}"
    if (folder / "about.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".convert-"))
    try:
        about = convert(scratch)
        (scratch / "about.json").write_text(json.dumps(about), encoding="utf-8")
        try:
            scratch.rename(folder)
        except OSError:
            if not (folder / "about.json").is_file():  # else another process finished the same conversion first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def about(folder: Path) -> dict[str, Any]:
    """Return a conversion's metadata."""
    found: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return found


class CompiledModel:
    """A compiled model; one call at a time, since OpenVINO spreads each call over the threads."""

    def __init__(self, model: Path, settings: ModelsSettings, *, exact: bool = False) -> None:
        """Compile; `exact` computes in float32 where the processor would be faster in bfloat16."""
        import openvino as ov  # noqa: PLC0415

        self._lock = threading.Lock()
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads_of(settings)}
        if exact:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._compiled = ov.Core().compile_model(model, "CPU", config)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The input's shape, None for a dynamic dimension."""
        dims = self._compiled.input(0).get_partial_shape()
        return tuple(dim.get_length() if dim.is_static else None for dim in dims)

    def __call__(self, array: Array) -> Array:
        """Return the first output for one input."""
        with self._lock:
            return np.array(self._compiled(array)[0])
