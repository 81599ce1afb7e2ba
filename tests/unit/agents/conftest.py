"""Fixtures of the agents' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.stages.indexer import Tools
from tests.support.indexer import indexer_tools


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    """Yield the indexer's tools."""
    async with indexer_tools(tmp_path) as found:
        yield found
