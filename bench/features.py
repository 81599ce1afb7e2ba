"""The feature API: concurrent requests, batched into CLIP calls, against one by one. `python -m bench.features`.

Everything but HTTP: sandboxed decoding, batching, the image tower. Without OpenAI's weights the network has
seeded random ones: the same computation, other vectors.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.clip import weights_to_run
from bench.photos import data_folder, hundred_photos, show
from darkroom.processes.clip import open_features, open_tower
from gateway.search.feature_batching import Batching, FeatureSettings, open_batching

ROUNDS, IMAGES = 4, 100


async def _measure(paths: list[Path], scratch: Path) -> tuple[float, float, str]:
    """Return the seconds sequential and concurrent, in alternating rounds, and a description of the model."""
    _, models, which = weights_to_run(scratch)
    settings = FeatureSettings(timeout_s=600)
    async with (
        open_tower(models) as tower,
        open_features(tower, decoders=settings.decoders, max_bytes=settings.max_bytes) as encoder,
        open_batching(encoder, settings) as batching,
    ):
        model = await batching.model()
        await batching.vectors(paths[:4])  # start the children and warm up the model
        sequential_s = concurrent_s = 0.0
        for at in range(ROUNDS):
            some = paths[at::ROUNDS]
            sequential_s += await _timed(_one_by_one(batching, some))
            concurrent_s += await _timed(_at_once(batching, some))
    return sequential_s, concurrent_s, f"{model.backend}, batch {settings.batch_size}, {which}"


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _one_by_one(batching: Batching[Any], paths: list[Path]) -> None:
    for path in paths:
        await batching.vectors([path])


async def _at_once(batching: Batching[Any], paths: list[Path]) -> None:
    await asyncio.gather(*(batching.vectors([path]) for path in paths))


def run(data_dir: Path) -> list[dict[str, Any]]:
    """Return one row: seconds for 100 photos as sequential and as concurrent requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for number, photo in enumerate(hundred_photos(data_dir)[:IMAGES]):
            path = folder / f"{number}.jpg"
            photo.convert("RGB").save(path, "JPEG", quality=90)
            paths.append(path)
        sequential_s, concurrent_s, notes = asyncio.run(_measure(paths, folder))
    rate = f"{len(paths) / concurrent_s:.1f} images/s at once, {len(paths) / sequential_s:.1f} one by one; {notes}"
    return [
        {
            "work": "vectors of 100 photos",
            "baseline_s": sequential_s,
            "ours_s": concurrent_s,
            "ratio": sequential_s / concurrent_s,
            "target": 1.0,
            "notes": rate,
        }
    ]


if __name__ == "__main__":
    show(run(data_folder()))
