"""CLIP ViT-B/32: the image tower and the text tower, each loadable alone; OpenVINO on a CPU, torch as the reference.

With a conversion in the cache the image tower needs neither torch nor open_clip, so the process stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import JsonValue

from agents.core.embed import DIMENSIONS, SIDE, Floats, normalise, prepare
from agents.models.converted import OPENVINO, CompiledModel, backend_of, converted, threads_of
from agents.models.weights import Weights, find
from streams.settings import CLIP_MODEL, ModelsSettings

_CONTEXT = 77  # tokens


def find_clip(settings: ModelsSettings) -> Weights:
    """Return the CLIP weights to use. Raises Unavailable."""
    return find(CLIP_MODEL, settings, own=settings.clip_weights)


def _load(path: Path, architecture: str) -> Any:
    """Return open_clip's model with these weights: OpenAI's TorchScript archive, or a plain state dict."""
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except RuntimeError:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    model = open_clip.create_model(architecture, pretrained=None, precision="fp32", device="cpu")
    model.load_state_dict(state)
    return model.eval()


def _tower(path: Path, architecture: str, part: str) -> Any:
    import torch  # noqa: PLC0415

    class Tower(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """One tower as a module of one input, so that it can be traced."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model.encode_image(x) if part == "image" else self.model.encode_text(x)

    model = _load(path, architecture)
    if part == "text":
        del model.visual
    else:
        del model.transformer, model.token_embedding
    return Tower(model).eval()


def _convert(weights: Weights, architecture: str, part: str, folder: Path) -> dict[str, JsonValue]:
    import openvino as ov  # noqa: PLC0415
    import torch  # noqa: PLC0415

    shape = (2, 3, SIDE, SIDE) if part == "image" else (2, _CONTEXT)
    example = torch.zeros(shape, dtype=torch.float32 if part == "image" else torch.int64)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel cannot be traced: the graph would differ
    try:
        with torch.no_grad():
            model = ov.convert_model(_tower(weights.path, architecture, part), example_input=example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    model.reshape([-1, *shape[1:]])
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return {"architecture": architecture, "part": part}


class _Tower:
    """One tower behind either backend: prepared inputs in, unit vectors out."""

    def __init__(self, weights: Weights, settings: ModelsSettings, part: str) -> None:
        architecture = settings.clip_architecture
        self.weights = weights
        self.backend = backend_of(settings)
        if self.backend == OPENVINO:
            folder = converted(
                settings, weights, f"{architecture}-{part}", lambda to: _convert(weights, architecture, part, to)
            )
            self._run: Any = CompiledModel(folder / "model.xml", settings)
        else:
            self._run = _torch_runner(_tower(weights.path, architecture, part), threads_of(settings))

    def __call__(self, inputs: npt.NDArray[Any]) -> Floats:
        if not len(inputs):
            return np.zeros((0, DIMENSIONS), np.float32)
        return normalise(self._run(inputs))


def _torch_runner(tower: Any, threads: int) -> Any:
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tower = tower.to(device)

    def run(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            answer: npt.NDArray[Any] = tower(torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return answer

    return run


class ClipEncoder:
    """CLIP's image tower. Safe to call from several threads."""

    def __init__(self, weights: Weights, settings: ModelsSettings) -> None:
        self._tower = _Tower(weights, settings, "image")
        self.weights = weights
        self.architecture = settings.clip_architecture
        self.backend = self._tower.backend

    def encode(self, prepared: Floats) -> Floats:
        """Return one unit vector of 512 float32 per prepared image (agents.core.embed.prepare)."""
        return self._tower(prepared)

    def encode_images(self, images: Sequence[Image.Image | npt.NDArray[np.uint8]]) -> Floats:
        """Return one unit vector per image (Pillow, or RGB uint8 of shape (height, width, 3))."""
        pictures = (image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images)
        prepared = [prepare(picture) for picture in pictures]
        return self.encode(np.stack(prepared) if prepared else np.zeros((0, 3, SIDE, SIDE), np.float32))


class ClipTextEncoder:
    """CLIP's text tower, without the image tower. Safe to call from several threads."""

    def __init__(self, weights: Weights, settings: ModelsSettings) -> None:
        import open_clip  # noqa: PLC0415

        self._tokenize = open_clip.get_tokenizer(settings.clip_architecture)
        self._tower = _Tower(weights, settings, "text")
        self.weights = weights
        self.backend = self._tower.backend

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return one unit vector of 512 float32 per text; a text is cut after 77 tokens."""
        return self._tower(self._tokenize(list(texts)).numpy())
