"""What one writes first: a loop over photos with Pillow, EasyOCR, YOLO and open_clip as their documentation shows them.

Prints the seconds for all photos; models are loaded and warm before. It stores no state, checks no input, and stops at
the first bad image.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import easyocr
import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps
from ultralytics import YOLO

from agents.models.easyocr_reader import find_easyocr
from bench.uploads import varied
from schemas.values import RENDITION_SIDES
from streams.settings import CLIP_ARCHITECTURE, Settings


def main(data_dir: Path, folder: Path, count: int) -> float:
    """Return the seconds for `count` photos; renditions are written to a folder. Weights are those of the settings."""
    models = Settings().models
    if models.dir is None or models.clip_weights is None:
        raise SystemExit("DARKROOM_MODELS__DIR and DARKROOM_MODELS__CLIP_WEIGHTS name the weights")
    weights = find_easyocr(models, ["en"])[0].path.parent
    reader = easyocr.Reader(
        ["en"], gpu=False, verbose=False, download_enabled=False, model_storage_directory=str(weights)
    )
    detector = YOLO(next(models.dir.glob("*yolo*.pt")))
    clip, _, preprocess = open_clip.create_model_and_transforms(CLIP_ARCHITECTURE, pretrained=None)
    clip.load_state_dict(torch.load(models.dir / models.clip_weights))
    clip.eval()
    folder.mkdir(parents=True, exist_ok=True)

    def process(number: int, photo: bytes) -> None:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")
        for name, side in RENDITION_SIDES.items():
            smaller = image.copy()
            smaller.thumbnail((side, side))
            smaller.save(folder / f"{number}-{name}.webp")
        reader.readtext(np.asarray(image))
        detector.predict(image, verbose=False, device="cpu")
        with torch.no_grad():
            clip.encode_image(preprocess(image)[None], normalize=True)

    photos = varied(data_dir, count)
    process(0, photos[0])
    began = time.perf_counter()
    for number, photo in enumerate(photos):
        process(number, photo)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
