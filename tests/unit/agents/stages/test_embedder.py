"""The embedder's former settings of the model: they cannot select another one than search uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.stages import embedder
from gateway.search.feature_batching import FeatureSettings
from streams.errors import NotReady
from streams.object_store.factory import open_files
from streams.process.settings_checks import check_one_clip
from streams.settings import FilesSettings, ModelsSettings
from tests.support.masters import resources

OWN = {"clip_weights": "own.pt", "clip_architecture": "ViT-B-32"}


@pytest.mark.parametrize(
    ("former", "named"),
    [
        ({"weights": "own.pt"}, "DARKROOM_EMBEDDER__WEIGHTS.*DARKROOM_MODELS__CLIP_WEIGHTS"),
        ({"architecture": "ViT-B-32"}, "DARKROOM_EMBEDDER__ARCHITECTURE.*DARKROOM_MODELS__CLIP_ARCHITECTURE"),
    ],
)
async def test_the_embedder_starts_with_no_model_of_its_own(former: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A former setting that would index with another model than search uses stops the start, naming the new one."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, ModelsSettings(cache=tmp_path, download=False), tmp_path)
        with pytest.raises(NotReady, match=named):
            async with embedder.STAGE.open(embedder.EmbedderSettings.model_validate(former), lent):
                pytest.fail("the stage opened")


@pytest.mark.parametrize(
    ("models", "former"),
    [({}, {}), (OWN, {}), (OWN, {"weights": "own.pt", "architecture": "ViT-B-32"}), (OWN, {"weights": None})],
)
def test_former_settings_may_repeat_the_shared_ones(models: dict[str, Any], former: dict[str, Any]) -> None:
    """Unset, empty or equal they change nothing, so that processes of both versions can run during an upgrade."""
    check_one_clip(ModelsSettings.model_validate(models), "EMBEDDER", embedder.EmbedderSettings.model_validate(former))


def test_feature_extraction_uses_the_shared_model() -> None:
    """Its own former setting is refused as well."""
    with pytest.raises(NotReady, match="DARKROOM_FEATURES__WEIGHTS"):
        check_one_clip(ModelsSettings(), "FEATURES", FeatureSettings(weights="own.pt"))


def test_the_vector_space_has_architecture_and_weights() -> None:
    """Equal names mean comparable vectors."""
    assert ModelsSettings().vector_space() == "ViT-B-32-quickgelu clip-vit-b-32"
    assert ModelsSettings.model_validate(OWN).vector_space() == "ViT-B-32 own.pt"
