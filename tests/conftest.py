"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streams.settings import TelemetrySettings
from streams.telemetry.logs import configure_logs

pytest_plugins = ["tests.support.services", "tests.support.docstring_ids"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real images and models: DARKROOM_TEST_DATA, or shared/data beside the checkout."""
    named = os.environ.get("DARKROOM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "images").is_dir():
        pytest.fail(f"no test data at {folder}: set DARKROOM_TEST_DATA to a folder with images/ and models/")
    return folder


@pytest.fixture(scope="session")
def images_dir(data_dir: Path) -> Path:
    """Return the folder of test images."""
    return data_dir / "images"


@pytest.fixture(scope="session")
def models_dir(data_dir: Path) -> Path:
    """Return the folder of test models."""
    return data_dir / "models"


@pytest.fixture(scope="session")
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of models for the processes of this session, without what this machine may have fetched."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Log as the services do."""
    configure_logs(TelemetrySettings(log_level="WARNING"), process="tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker of pytest-xdist: they share a deployment, a Kafka or a model.

    A test that names a group of its own (`pytest.mark.xdist_group`) keeps it.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
