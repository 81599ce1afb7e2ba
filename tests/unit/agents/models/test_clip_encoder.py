"""CLIP's two towers on both backends compared with open_clip, and the embedder agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.core.embed import Collapsed, Floats, normalise
from agents.models.clip_encoder import ClipEncoder, ClipTextEncoder, find_clip
from agents.models.weights import Weights
from agents.stages import embedder as agent
from schemas.stored.results import ImageEmbedding
from schemas.values import StageReport
from streams import topics
from streams.errors import NotReady, ObjectGone
from streams.object_store.factory import open_files
from streams.settings import CLIP_ARCHITECTURE, FilesSettings, ModelsSettings
from streams.stage import Announcement, Skip
from streams.telemetry.health_board import Condition
from tests.support.masters import missing_master, resources, store

pytestmark = pytest.mark.lengthy

TEXTS = ["a kitten", "a motel sign at night", "a boardwalk by the sea", "", "a " + "very " * 200 + "long text"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelsSettings:
    """Settings whose folder contains ViT-B/32 with seeded random weights: the test compares the architecture."""
    import open_clip  # noqa: PLC0415 - seconds
    import torch  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    torch.save(open_clip.create_model(CLIP_ARCHITECTURE, pretrained=None).state_dict(), folder / "random.pt")
    cache = tmp_path_factory.mktemp("cache")
    return ModelsSettings(dir=folder, cache=cache, download=False, clip_weights="random.pt")


@pytest.fixture(scope="module")
def weights(settings: ModelsSettings) -> Weights:
    return find_clip(settings)


@pytest.fixture(scope="module")
def photos(images_dir: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((images_dir / "clip_golden").glob("*.jpg"))]


@pytest.fixture(scope="module")
def theirs(weights: Weights, photos: list[Image.Image]) -> tuple[Floats, Floats]:
    """Return open_clip's own unit vectors of the photos and the texts."""
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model, _, preprocess = open_clip.create_model_and_transforms(CLIP_ARCHITECTURE, pretrained=None)
    model.load_state_dict(torch.load(weights.path))
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(photo) for photo in photos]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(CLIP_ARCHITECTURE)(TEXTS), normalize=True)
    return images.numpy(), texts.numpy()


@pytest.fixture(scope="module", params=["openvino", "torch"])
def backend(request: pytest.FixtureRequest, settings: ModelsSettings) -> ModelsSettings:
    return settings.model_copy(update={"backend": request.param})


def test_image_vectors_equal_open_clips(
    backend: ModelsSettings, weights: Weights, photos: list[Image.Image], theirs: tuple[Floats, Floats]
) -> None:
    """On both backends each photo's vector has a cosine of at least 0.9999 to open_clip's."""
    encoder = ClipEncoder(weights, backend)
    ours = encoder.encode_images(photos)
    assert encoder.backend == backend.backend
    assert ours.shape == (7, 512)
    assert ours.dtype == np.float32
    assert float((ours * theirs[0]).sum(axis=1).min()) >= 0.9999
    alone = encoder.encode_images([np.asarray(photos[3])])
    assert float((alone[0] * theirs[0][3]).sum()) >= 0.9999


def test_text_vectors_equal_open_clips(
    backend: ModelsSettings, weights: Weights, theirs: tuple[Floats, Floats]
) -> None:
    """On both backends each text's vector has a cosine of 0.9999 to open_clip's, even if empty or too long."""
    ours = ClipTextEncoder(weights, backend).encode_texts(TEXTS)
    assert float((ours * theirs[1]).sum(axis=1).min()) >= 0.9999


def test_the_activation_is_quick_gelu(
    weights: Weights, settings: ModelsSettings, photos: list[Image.Image], theirs: tuple[Floats, Floats]
) -> None:
    """Torch agrees with open_clip's QuickGELU model to rounding; the exact GELU of plain ViT-B-32 visibly does not."""
    torch_only = settings.model_copy(update={"backend": "torch"})
    quick = ClipEncoder(weights, torch_only).encode_images(photos)
    plain = torch_only.model_copy(update={"clip_architecture": "ViT-B-32"})
    exact = ClipEncoder(weights, plain).encode_images(photos)
    assert float(np.abs(quick - theirs[0]).max()) < 1e-5
    assert float(np.abs(exact - theirs[0]).max()) > 1e-4


def test_no_images_are_no_vectors(weights: Weights, settings: ModelsSettings) -> None:
    """An empty list gives an array without rows, of the right width."""
    assert ClipEncoder(weights, settings).encode_images([]).shape == (0, 512)


async def test_the_agent_embeds_and_one_bad_image_fails_on_its_own(
    settings: ModelsSettings, photos: list[Image.Image], theirs: tuple[Floats, Floats], tmp_path: Path
) -> None:
    """A batch with a broken and a missing master returns the photos' vectors in order and two errors."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.EmbedderSettings(), lent) as tools:
            first, last = await store(files, photos[0]), await store(files, photos[6])
            answers = await agent.embed([first, await store(files, b"no image"), missing_master(), last], tools)
            assert agent.STAGE.probe is not None
            await agent.STAGE.probe(tools)
            assert isinstance(answers[1], OSError)
            assert isinstance(answers[2], ObjectGone)
            for answer, row in ((answers[0], 0), (answers[3], 6)):
                assert isinstance(answer, ImageEmbedding)
                assert float(np.dot(answer.vector.values(), theirs[0][row])) >= 0.9999
                assert np.linalg.norm(answer.vector.values()) == pytest.approx(1, abs=1e-5)
            assert agent.STAGE.once is not None
            known = Announcement(
                StageReport(stage="embedder", version="1", attempts=1, duration_ms=1), first.image.master
            )
            result = answers[0]
            assert isinstance(result, ImageEmbedding)
            ((topic, fact),) = agent.STAGE.once.announce(first, result, known).events
            assert (topic, fact.image_id) == (topics.FACTS, first.image_id)
            assert agent.STAGE.once.parameters(first, tools)["weights"] == result.model.sha256
        assert lent.health.condition() is Condition.OK


async def test_without_weights_the_agent_skips_with_the_reason(tmp_path: Path) -> None:
    """Without weights each image is skipped with the reason, and health is degraded."""
    nowhere = ModelsSettings(dir=None, cache=tmp_path / "cache", download=False)
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, nowhere, tmp_path)
        async with agent.STAGE.open(agent.EmbedderSettings(), lent) as tools:
            (answer,) = await agent.embed([missing_master()], tools)
        assert lent.health.condition() is Condition.DEGRADED
    assert isinstance(answer, Skip)
    assert "ViT-B-32.pt" in answer.message


async def test_collapsed_weights_make_the_agent_refuse_to_start(settings: ModelsSettings, tmp_path: Path) -> None:
    """The golden images detect weights that give every image the same vector; the stage does not open."""
    import torch  # noqa: PLC0415

    assert settings.dir is not None
    state = torch.load(settings.dir / "random.pt")
    state["visual.conv1.weight"].zero_()  # blind: no pixel reaches the first layer
    torch.save(state, tmp_path / "blind.pt")
    blind = settings.model_copy(update={"dir": tmp_path, "backend": "torch", "clip_weights": "blind.pt"})
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, blind, tmp_path)
        with pytest.raises(NotReady, match="cosine"):
            async with agent.STAGE.open(agent.EmbedderSettings(), lent):
                pytest.fail("the stage opened")
        assert lent.health.condition() is Condition.UNREADY


def test_the_encoder_raises_on_nan() -> None:
    """A tower that returns NaN makes the encoder raise."""
    with pytest.raises(Collapsed):
        normalise(np.full((1, 512), np.nan, np.float32))
