"""Fixtures and collection hooks shared by all tests."""

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
    configured = os.environ.get("DARKROOM_TEST_DATA")
    folder = Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared" / "data"
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
    """Return an initially empty model cache for the processes of this run, shared by all workers.

    A conversion is written atomically, so that one serves every process, as in production.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Configure logging as the services do."""
    configure_logs(TelemetrySettings(log_level="WARNING"), process="tests")


@pytest.hookimpl(tryfirst=True)  # before the hook of pytest-xdist that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker of pytest-xdist: they share module fixtures: processes, Kafka, models.

    The end-to-end tests share one system, and are one group. A group set on a test (`pytest.mark.xdist_group`) is kept.
    Lengthy files come first: one that began last would end the run alone.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            file = item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group("e2e" if file.startswith("tests/e2e/") else file))
    items.sort(key=lambda item: item.get_closest_marker("lengthy") is None)
