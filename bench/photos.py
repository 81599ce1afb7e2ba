"""The photos of the model benchmarks, and their output."""

from __future__ import annotations

import os
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image


def data_folder() -> Path:
    """Return the folder of real images and models: DARKROOM_TEST_DATA, or shared/data beside the checkout."""
    configured = os.environ.get("DARKROOM_TEST_DATA")
    return Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared" / "data"


def hundred_photos(data_dir: Path) -> list[Image.Image]:
    """Return 100 decoded RGB photos of about twenty shapes, by repeating the test photos."""
    folders = (data_dir / "images" / "photos", data_dir / "images" / "clip_golden")
    paths = sorted(path for folder in folders for path in folder.iterdir())
    photos = [Image.open(path).convert("RGB") for path in paths]
    return list(islice(cycle(photos), 100))


def show(rows: list[dict[str, Any]]) -> None:
    """Print one line per row."""
    for row in rows:
        print(
            f"{row['work']}: baseline {row['baseline_s']:.2f} s, ours {row['ours_s']:.2f} s, "
            f"ratio {row['ratio']:.2f} (target {row['target']}); {row['notes']}"
        )
