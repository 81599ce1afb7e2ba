"""The photos the model benches run on, and how their rows are shown."""

from __future__ import annotations

import os
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image


def data_folder() -> Path:
    """Return the folder of real images and models: DARKROOM_TEST_DATA, or shared/data beside the checkout."""
    named = os.environ.get("DARKROOM_TEST_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def hundred_photos(data_dir: Path) -> list[Image.Image]:
    """Return 100 decoded RGB photos of some twenty shapes: the real ones, over and over."""
    folders = (data_dir / "images" / "photos", data_dir / "images" / "clip_golden")
    paths = sorted(path for folder in folders for path in folder.iterdir())
    photos = [Image.open(path).convert("RGB") for path in paths]
    return list(islice(cycle(photos), 100))


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    for row in rows:
        print(
            f"{row['work']}: baseline {row['baseline_s']:.2f} s, ours {row['ours_s']:.2f} s, "
            f"ratio {row['ratio']:.2f} (to reach {row['target']}); {row['notes']}"
        )
