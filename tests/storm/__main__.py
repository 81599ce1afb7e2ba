"""`python -m tests.storm`: the long fault suite; `--short`: the one of CI."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from tests.storm import report
from tests.storm.report import Run
from tests.storm.schedule import long_schedule, only, short_schedule
from tests.storm.storm import LONG, SHORT, Plan, run_storm

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def make_plan(arguments: list[str]) -> tuple[Plan, Path]:
    """Return the plan of the command line, and the file of the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--images", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--short", action="store_true", help="a dozen faults in a few minutes")
    parser.add_argument("--only", default="", help="only faults of these kinds, comma separated")
    parser.add_argument(
        "--folder", type=Path, default=Path(".darkroom/storm"), help="folder of data, logs and the result"
    )
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("DARKROOM_TEST_DATA") or _DATA)
    if not (data / "images").is_dir():
        parser.error(f"no test data at {data}: set DARKROOM_TEST_DATA to a folder with images/ and models/")
    models = os.environ.get("DARKROOM_MODELS__DIR")
    shape = SHORT if options.short else LONG
    minutes = options.minutes or shape.minutes
    schedule = (short_schedule if options.short else long_schedule)(options.seed, minutes)
    if options.only:
        schedule = only(schedule, options.only.split(","), minutes)
    plan = Plan(
        seed=options.seed,
        images=options.images or shape.images,
        minutes=minutes,
        schedule=schedule,
        shape=shape,
        folder=options.folder / f"run-{options.seed}-{os.getpid()}",
        images_dir=data / "images",
        models=Path(models) if models else None,
        cache=options.folder / "models",
    )
    return plan, options.folder / ("short.json" if options.short else "long.json")


def say(line: str) -> None:
    """Write a progress line, unbuffered."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _until_signal(plan: Plan) -> Run:
    """Run the plan; SIGTERM cancels it like Ctrl-C, with all its processes."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    return await run_storm(plan, say)


def main() -> int:
    """Print the schedule, run it, print the report; return 0 if every guarantee held."""
    plan, file = make_plan(sys.argv[1:])
    say(f"seed {plan.seed}")
    for planned in plan.schedule:
        say(str(planned))
    run = asyncio.run(_until_signal(plan))
    report.save(run, file)
    say(report.whole(run))
    say(f"saved as {file}")
    if run.kept:
        shutil.rmtree(plan.folder)
    else:
        say(f"data and logs are kept in {plan.folder}")
    return 0 if run.kept else 1


if __name__ == "__main__":
    sys.exit(main())
