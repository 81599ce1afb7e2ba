"""The networks of PP-OCRv6 small: detection, recognition, and whether a line is upside down; three runtimes.

OpenVINO runs them on a CPU, several times faster than ONNX Runtime (0.3 and 2.4 CPU seconds a page); ONNX Runtime and
CUDA are settings. The weights are the ONNX files of the package `rapidocr`, none of whose code is used.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agents.models.converted import threads_of
from agents.models.weights import Unavailable, Weights, find
from streams.settings import ModelsSettings

DETECTOR, RECOGNISER, DIRECTION = "ppocr-v6-small-detector", "ppocr-v6-small-recogniser", "ppocr-v2-line-direction"
Runtime = Literal["openvino", "onnxruntime", "cuda"]
Floats = npt.NDArray[np.float32]
Run = Callable[[Floats], list[npt.NDArray[Any]]]  # one call at a time


@dataclass(frozen=True, slots=True)
class Networks:
    """The three networks. Each takes a float32 batch (images, 3, rows, columns), BGR, -1 to 1. Thread-safe."""

    weights: tuple[Weights, ...]
    alphabet: tuple[str, ...]  # class -> character; class 0 is the blank
    runtime: Runtime
    _detect: Run
    _recognise: Run
    _direction: Run

    def detect(self, batch: Floats) -> Floats:
        """Return the probability (images, rows, columns) that a pixel is text. Sides are multiples of 32."""
        found: Floats = self._detect(batch)[0][:, 0]
        return found

    def recognise(self, batch: Floats) -> tuple[npt.NDArray[np.integer[Any]], Floats]:
        """Return the likeliest class of each time step (images, steps), and its probability. Rows are 48."""
        outputs = self._recognise(batch)
        if len(outputs) == 2:
            return outputs[1][..., 0], outputs[0][..., 0]
        return outputs[0].argmax(axis=2), outputs[0].max(axis=2)

    def upside_down(self, batch: Floats) -> Floats:
        """Return the probability (images) that a line is upside down. 48 rows, 192 columns."""
        found: Floats = self._direction(batch)[0][:, 1]
        return found


def open_networks(settings: ModelsSettings, runtime: Runtime) -> Networks:
    """Load the networks. Raises Unavailable for missing weights, or a runtime that is not installed."""
    weights = tuple(find(name, settings) for name in (DETECTOR, RECOGNISER, DIRECTION))
    load = _openvino if runtime == "openvino" else _onnxruntime
    return load(weights, settings, runtime)


def _openvino(weights: tuple[Weights, ...], settings: ModelsSettings, runtime: Runtime) -> Networks:
    try:
        import openvino as ov  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Unavailable("openvino is not installed") from error
    core = ov.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads_of(settings),
        # Where a CPU has bfloat16, it is the default: an image's text would depend on the machine that read it.
        "INFERENCE_PRECISION_HINT": "f32",
        # Every image has other shapes: what OpenVINO keeps for each takes 300 MB after some hundred images.
        "CPU_RUNTIME_CACHE_CAPACITY": 0,
    }
    detector, recogniser, direction = (core.read_model(weight.path) for weight in weights)
    alphabet = str(recogniser.get_rt_info(["framework", "character"]).value)
    # The likeliest class is found within the graph: the probabilities of all classes take 9 MB for one long line.
    best = ov.opset13.topk(recogniser.output(0).get_node().input_value(0), np.int64(1), -1, "max", "none")
    recogniser = ov.Model([best.output(0), best.output(1)], recogniser.get_parameters())

    def run(model: Any) -> Run:
        request = core.compile_model(model, "CPU", config).create_infer_request()
        lock = threading.Lock()

        def answer(batch: Floats) -> list[npt.NDArray[Any]]:
            with lock:
                found = request.infer([batch], share_inputs=True, share_outputs=True)
                return [np.array(found[index]) for index in range(len(found))]

        return answer

    return Networks(weights, _alphabet(alphabet), runtime, run(detector), run(recogniser), run(direction))


def _onnxruntime(weights: tuple[Weights, ...], settings: ModelsSettings, runtime: Runtime) -> Networks:
    try:
        import onnxruntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Unavailable("onnxruntime is not installed (extra `onnx`; for CUDA: onnxruntime-gpu)") from error
    provider = "CUDAExecutionProvider" if runtime == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable(f"onnxruntime has no {provider} (install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads_of(settings)

    def session(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])

    def run(network: Any) -> Run:
        name = network.get_inputs()[0].name

        def answer(batch: Floats) -> list[npt.NDArray[Any]]:
            found: list[npt.NDArray[Any]] = network.run(None, {name: batch})
            return found

        return answer

    detector, recogniser, direction = (session(weight.path) for weight in weights)
    alphabet = recogniser.get_modelmeta().custom_metadata_map["character"]
    return Networks(weights, _alphabet(alphabet), runtime, run(detector), run(recogniser), run(direction))


def return_freed_memory() -> None:
    """Give what earlier images freed back to the system: glibc keeps some 300 MB of it."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _alphabet(characters: str) -> tuple[str, ...]:
    return ("", *characters.split("\n"), " ")
