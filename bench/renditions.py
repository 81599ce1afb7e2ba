"""Four renditions of a 12-megapixel JPEG: ours against plain Pillow, in the same run.

Baseline: decode once, Lanczos from full size for each, WebP quality 85 at its default effort, one thread.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from agents.core.resize import fitted, open_master, render

SIDES = {"thumbnail": 150, "medium": 600, "large": 1200, "original": 4096}
ROUNDS = 5
TARGET = 1.9
# Resized to 12 MP and saved at about 2 MB. The first is a camera picture at nearly its original scale; the second,
# enlarged three times, has ringing on every edge: harder for an encoder at low effort.
PHOTOS = (("photo", "formats/gain-map.jpg", 99), ("enlarged photo", "photos/kite_and_cold.jpg", 94))


def _twelve_megapixels(path: Path, quality: int) -> bytes:
    with Image.open(path) as source:
        photo = source.convert("RGB")
    width = min(photo.width, photo.height * 4 // 3)
    height = width * 3 // 4
    box = ((photo.width - width) // 2, (photo.height - height) // 2)
    photo = photo.crop((*box, box[0] + width, box[1] + height)).resize((4000, 3000), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _plain(data: bytes) -> dict[str, bytes]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    made = {}
    for name, side in SIDES.items():
        out = io.BytesIO()
        image.resize(fitted(image.size, side), Image.Resampling.LANCZOS).save(out, "WEBP", quality=85)
        made[name] = out.getvalue()
    return made


def _ours(data: bytes, threads: ThreadPoolExecutor) -> dict[str, bytes]:
    async def work() -> dict[str, bytes]:  # as in agents.stages.resizer
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(threads, open_master, data, tuple(SIDES.values()))
        names = sorted(SIDES, key=SIDES.__getitem__, reverse=True)
        sizes = [fitted(image.size, SIDES[name]) for name in names]
        bodies = await asyncio.gather(*(loop.run_in_executor(threads, render, image, size) for size in sizes))
        return dict(zip(names, bodies, strict=True))

    return asyncio.run(work())


def _timed(work: Callable[[], dict[str, bytes]]) -> tuple[float, dict[str, bytes]]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def _ssim(ours: bytes, reference: bytes) -> float:
    """Return the SSIM of the luma of two images."""
    first, second = (np.asarray(Image.open(io.BytesIO(body)).convert("L")) for body in (ours, reference))
    return float(structural_similarity(first, second))


def run(data_dir: Path) -> list[dict[str, object]]:
    """Return one row per photo: the best of five alternating rounds."""
    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(2) as threads:
        for what, name, quality in PHOTOS:
            data = _twelve_megapixels(data_dir / "images" / name, quality)
            plain_s, ours_s = [], []
            for _ in range(ROUNDS):
                seconds, reference = _timed(lambda data=data: _plain(data))  # type: ignore[misc]
                plain_s.append(seconds)
                seconds, made = _timed(lambda data=data: _ours(data, threads))  # type: ignore[misc]
                ours_s.append(seconds)
            alike = {name: _ssim(made[name], reference[name]) for name in SIDES}
            grown = sum(map(len, made.values())) / sum(map(len, reference.values())) - 1
            rows.append(
                {
                    "work": f"12 MP, {len(data) / 1e6:.1f} MB JPEG ({what}) to four variants",
                    "baseline_s": min(plain_s),
                    "ours_s": min(ours_s),
                    "ratio": min(plain_s) / min(ours_s),
                    "target": TARGET,
                    "notes": "SSIM "
                    + ", ".join(f"{name} {value:.3f}" for name, value in alike.items())
                    + f" (target 0.985); bytes {grown:+.1%}",
                }
            )
    return rows


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "shared" / "data"
    for row in run(folder):
        print(
            f"{row['work']}: baseline {row['baseline_s']:.2f} s, ours {row['ours_s']:.2f} s, "
            f"{row['ratio']:.2f}x (target {row['target']}x); {row['notes']}"
        )
