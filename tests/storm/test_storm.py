"""The fault suite in its short form: a dozen faults under a stream of uploads, and the books balance."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.storm import report
from tests.storm.schedule import short_schedule
from tests.storm.storm import SHORT, Plan, run_storm

SEED = 4


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.mark.timeout(900)  # four minutes on a machine of its own
def test_nothing_is_lost_in_a_storm(images_dir: Path, models_dir: Path, models_cache: Path, tmp_path: Path) -> None:
    """Three brokers, MinIO and every agent, broken in a dozen ways: each upload ends once, and every promise holds."""
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
    said = report.whole(run)
    _say(said)
    assert run.kept, said
