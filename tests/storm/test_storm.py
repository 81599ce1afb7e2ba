"""The short fault suite: a dozen faults under a stream of uploads, and the audit of all guarantees."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.storm import report
from tests.storm.schedule import short_schedule
from tests.storm.storm import SHORT, Plan, run_storm

pytestmark = pytest.mark.lengthy

SEED = 4


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.mark.timeout(900)  # four minutes on an idle machine
def test_all_guarantees_hold_under_faults(
    images_dir: Path, models_dir: Path, models_cache: Path, tmp_path: Path
) -> None:
    """With a dozen faults of brokers, MinIO and agents, each upload ends once and the audit finds no violation."""
    plan = Plan(
        seed=SEED,
        images=SHORT.images,
        minutes=SHORT.minutes,
        schedule=short_schedule(SEED, SHORT.minutes),
        shape=SHORT,
        folder=tmp_path,
        images_dir=images_dir,
        models=models_dir,
        cache=models_cache,
    )
    run = asyncio.run(run_storm(plan, _say))
    text = report.whole(run)
    _say(text)
    assert run.kept, text
