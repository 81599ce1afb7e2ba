"""Runs all tests, layer by layer: `python -m tests [pytest options]`. Prints the wall time and result of each layer.

The workers of a layer are processes of pytest-xdist, each with its own Kafka, MinIO and folders: `kafka` and `minio`
are session fixtures, and every worker is a session. The tests of a file stay on one worker (tests/conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

NO_TESTS = 5  # pytest's exit code when a selection such as `-k` leaves a layer empty


@dataclass(frozen=True, slots=True)
class Layer:
    """Folders and files that are run together, all but those ignored, and by how many workers."""

    paths: tuple[str, ...]
    workers: int
    ignored: str = ""


# Two workers are what two cores can do where tests compute. Contracts and faults wait for Kafka, restarts and timeouts
# half of their time. The others start the whole system and judge it under load: the end-to-end tests are alone, and the
# storm, which leaves most of a core idle, has one worker of light tests beside it; two uploads of 1 GB are not light.
_LARGE_UPLOADS = "tests/security/test_memory.py"
LAYERS = (
    Layer(("tests/unit", _LARGE_UPLOADS), 2),
    Layer(("tests/contracts", "tests/faults"), 5),
    Layer(("tests/e2e",), 1),
    Layer(("tests/storm", "tests/security"), 2, ignored=_LARGE_UPLOADS),
)


def run(layer: Layer, options: Sequence[str], report: Path) -> int:
    """Run one layer; return pytest's exit code. `report` is written as JUnit's XML."""
    parallel = ("-n", str(layer.workers), "--dist", "loadgroup", "--no-loadscope-reorder") if layer.workers > 1 else ()
    slowest = ("--durations=30", "--durations-min=1")
    ignored = (f"--ignore={layer.ignored}",) if layer.ignored else ()
    command = (
        sys.executable,
        "-m",
        "pytest",
        *parallel,
        *slowest,
        *ignored,
        f"--junitxml={report}",
        *options,
        *layer.paths,
    )
    # With it, each of some thousand processes would compile Darkroom's modules again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, check=False, env=environment).returncode


def failures(report: Path) -> Iterator[str]:
    """Yield a line for each test of JUnit's XML that failed, or one that says there is no report."""
    if not report.exists():
        yield "pytest ended without a report"
        return
    # The file is our own pytest's: nobody else's XML is parsed.
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in (*case.findall("failure"), *case.findall("error")):
            message = " ".join(outcome.get("message", "").split())
            yield f"{case.get('classname')}::{case.get('name')}: {message[:300]}"


def main(options: Sequence[str]) -> int:
    """Run every layer, also after one that failed; return 1 if any did."""
    results: list[tuple[Layer, int, float]] = []
    failed: list[str] = []
    for layer in LAYERS:
        print(f"\n== {' '.join(layer.paths)} ({layer.workers} at a time)", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="darkroom-tests-") as folder:
            report = Path(folder) / "junit.xml"
            code = run(layer, options, report)
            failed += failures(report)
        results.append((layer, code, time.monotonic() - began))
    for layer, code, seconds in results:
        outcome = {0: "passed", NO_TESTS: "nothing selected"}.get(code, f"FAILED ({code})")
        print(f"{' '.join(layer.paths):44} {seconds / 60:5.1f} min  {outcome}")
    print(f"{'all':44} {sum(seconds for _, _, seconds in results) / 60:5.1f} min", flush=True)
    for line in failed:
        print(f"FAILED {line}", flush=True)
    return int(any(code not in (0, NO_TESTS) for _, code, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
