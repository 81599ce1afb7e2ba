from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from agents.core.decode import Limits, Refusal
from agents.core.sanitize import sanitize


def _rgba(data: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(np.int16)


def _difference(shown: npt.NDArray[np.int16], wanted: npt.NDArray[np.int16]) -> int:
    """Return the largest difference of alpha, and of colour where something is shown."""
    if shown.shape != wanted.shape:
        return 256
    difference = np.abs(shown - wanted)
    difference[..., :3] *= wanted[..., 3:] > 0
    return int(difference.max())


def _fault(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    """Return what is wrong with the result for a file, None if it is right."""
    try:
        shown = _rgba(sanitize((folder / name).read_bytes(), Limits()).master)
    except Refusal as refusal:
        return None if entry["expected"] == "refused" else str(refusal)
    if entry["expected"] == "refused":
        return "accepted"
    found = min(_difference(shown, _rgba((folder / "expected" / one).read_bytes())) for one in entry["pixels"])
    return None if found <= entry["tolerance"] else f"differs by {found}"


def test_every_kind_of_file_gives_its_pixels_or_is_refused(images_dir: Path) -> None:
    """Each file of kinds/ gives the pixels that browsers show, or is refused because some are missing."""
    folder = images_dir / "kinds"
    entries = json.loads((folder / "expected.json").read_text())
    kinds = {entry["kind"] for entry in entries.values()}
    assert kinds == {"png-trns", "png-ancillary", "jpeg-eoi", "orientation", "gif-canvas", "bmp", "tiff", "avif"}
    faults = {name: _fault(folder, name, entry) for name, entry in entries.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}
