"""CLIP's preprocessing, bit by bit, and the checks of vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.core.embed import Collapsed, check_distinct, normalise, prepare, rank


def test_preprocessing_equals_the_golden_tensors_to_the_bit(data_dir: Path) -> None:
    """Seven photos prepared here equal, in every float, those prepared by another implementation."""
    golden = np.load(data_dir / "models" / "clip_vitb32_golden" / "preprocessed_7_f32.npz")
    for name, tensor in zip(golden["names"], golden["tensors"], strict=True):
        with Image.open(data_dir / "images" / "clip_golden" / f"{name}.jpg") as photo:
            assert np.array_equal(prepare(photo), tensor), name


@pytest.mark.parametrize("size", [(224, 224), (225, 300), (1, 900), (640, 13), (1000, 667)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocessing_equals_open_clips_for_any_shape(size: tuple[int, int], mode: str) -> None:
    """Odd shapes and grey images are bit-identical to open_clip's own transform."""
    import open_clip  # noqa: PLC0415 - seconds, which the other tests need not wait

    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    theirs = open_clip.image_transform(224, is_train=False)(image).numpy()
    assert np.array_equal(prepare(image), theirs)


@pytest.mark.parametrize("size", [(10_000, 1), (1, 9_999), (9_000, 4), (2, 4_001)])
def test_a_thin_image_is_prepared_from_its_middle(size: tuple[int, int]) -> None:
    """A side thousands of times the other takes no memory for what the centre crop drops, and gives the same input."""
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    middle = [(side - part) // 2 for side, part in zip(size, np.minimum(size, 400), strict=True)]
    box = (*middle, *(side - start for side, start in zip(size, middle, strict=True)))
    image = Image.fromarray(pixels)
    assert np.array_equal(prepare(image), prepare(image.crop(box)))


def test_vectors_have_unit_length() -> None:
    """Rows of any length become float32 of length one, in the same direction."""
    unit = normalise(np.array([[3.0, 4.0], [0.1, 0.0]]))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, np.array([[0.6, 0.8], [1, 0]], np.float32), rtol=1e-6)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_row_without_direction_is_no_vector(bad: list[float]) -> None:
    """Zero, NaN and infinity are refused, not stored."""
    with pytest.raises(Collapsed):
        normalise(np.array([[1.0, 0.0], bad]))


def test_equal_vectors_of_different_images_are_refused() -> None:
    """Equal vectors of different images raise Collapsed; different ones pass."""
    check_distinct(np.eye(3, dtype=np.float32))
    with pytest.raises(Collapsed, match="cosine"):
        check_distinct(np.ones((2, 1), dtype=np.float32))


def test_a_class_name_finds_its_photo_first(data_dir: Path) -> None:
    """Among seven real photos' CLIP vectors, class names rank the matching photo first."""
    folder = data_dir / "models" / "clip_vitb32_golden"
    names = json.loads((folder / "lvis_v1_names.json").read_text())
    words = normalise(np.load(folder / "lvis_v1_clip_a+cname.npy"))
    photos = np.load(folder / "image_embs_7.npz")
    vectors = normalise(photos["embs"])
    for word, photo in {
        "kitten": "456_123",
        "street_sign": "389_535",
        "surfboard": "208_495",
        "coconut": "321_421",
    }.items():
        assert photos["names"][rank(words[names.index(word)], vectors)[0]] == photo, word


def test_a_photo_finds_a_sensible_name_first(data_dir: Path) -> None:
    """Of 1203 class names, `kitten` is nearest to the kitten's photo, and a sign to the motel sign's."""
    folder = data_dir / "models" / "clip_vitb32_golden"
    names = json.loads((folder / "lvis_v1_names.json").read_text())
    words = normalise(np.load(folder / "lvis_v1_clip_a+cname.npy"))
    photos = np.load(folder / "image_embs_7.npz")
    vectors = dict(zip(photos["names"].tolist(), normalise(photos["embs"]), strict=True))
    assert names[rank(vectors["456_123"], words)[0]] == "kitten"
    assert names[rank(vectors["389_535"], words)[0]] == "street_sign"
