"""CLIP of 100 photos: the embedder's encoder against open_clip called photo by photo. `python -m bench.clip`.

Without OpenAI's weights the network has seeded random ones: the same computation, other vectors.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents.core.embed import normalise, prepare
from agents.models.clip_encoder import ClipEncoder, find_clip
from agents.models.weights import Unavailable, Weights
from bench.photos import data_folder, hundred_photos, show
from streams.settings import CLIP_ARCHITECTURE, ModelsSettings

ROUNDS, BATCH = 4, 8


def weights_to_run(scratch: Path) -> tuple[Weights, ModelsSettings, str]:
    """Return the weights, the settings that find them, and a description."""
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    settings = ModelsSettings(cache=ModelsSettings().cache, download=False)
    try:
        return find_clip(settings), settings, "OpenAI's weights"
    except Unavailable:
        torch.manual_seed(7)
        torch.save(open_clip.create_model(CLIP_ARCHITECTURE, pretrained=None).state_dict(), scratch / "random.pt")
        settings = ModelsSettings(dir=scratch, cache=scratch / "cache", download=False, clip_weights="random.pt")
        return find_clip(settings), settings, "random weights"


def run(data_dir: Path) -> list[dict[str, Any]]:
    """Return one row: seconds for 100 decoded photos with preprocessing, baseline and ours alternating."""
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    photos = hundred_photos(data_dir)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        weights, settings, which = weights_to_run(Path(folder))
        encoder = ClipEncoder(weights, settings)
        model, _, preprocess = open_clip.create_model_and_transforms(CLIP_ARCHITECTURE, pretrained=None)
        model = model.eval()
        state = torch.load(weights.path, weights_only=True) if weights.own else None
        if state is not None:
            model.load_state_dict(state)

        def theirs(some: list[Image.Image]) -> Any:
            with torch.no_grad():
                return np.concatenate([model.encode_image(preprocess(one).unsqueeze(0)).numpy() for one in some])

        def ours(some: list[Image.Image]) -> Any:
            prepared = list(pool.map(prepare, some))
            return np.concatenate(
                [encoder.encode(np.stack(prepared[at : at + BATCH])) for at in range(0, len(some), BATCH)]
            )

        cosine = (ours(photos[:BATCH]) * normalise(theirs(photos[:BATCH]))).sum(axis=1).min()
        baseline_s = ours_s = 0.0
        for at in range(ROUNDS):
            some = photos[at::ROUNDS]
            started = time.perf_counter()
            theirs(some)
            between = time.perf_counter()
            ours(some)
            baseline_s += between - started
            ours_s += time.perf_counter() - between
    agreement = f", cosine to open_clip at least {cosine:.5f}" if weights.own else ""
    return [
        {
            "work": "CLIP of 100 photos",
            "baseline_s": baseline_s,
            "ours_s": ours_s,
            "ratio": baseline_s / ours_s,
            "target": 4.0,
            "notes": f"open_clip loop, batch 1; {encoder.backend}, batch {BATCH}, {which}{agreement}",
        }
    ]


if __name__ == "__main__":
    show(run(data_folder()))
