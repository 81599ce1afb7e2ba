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
MOST_REPEATED = 5  # failed tests of a layer that run once more alone; more are no accident


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


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that failed; `node_id` is empty for a failure outside of tests."""

    node_id: str
    message: str


def run(paths: Sequence[str], options: Sequence[str], report: Path, workers: int = 1) -> int:
    """Run tests; return pytest's exit code. `report` is written as JUnit's XML."""
    parallel = ("-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder") if workers > 1 else ()
    reported = ("--durations=30", "--durations-min=1", f"--junitxml={report}")
    # With it, each of some thousand processes would compile Darkroom's modules again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = (sys.executable, "-m", "pytest", *parallel, *reported, *options, *paths)
    return subprocess.run(command, check=False, env=environment).returncode


def failures(report: Path) -> Iterator[Failure]:
    """Yield the failures in JUnit's XML, or one that says there is no report."""
    if not report.exists():
        yield Failure("", "pytest ended without a report")
        return
    # Safe to parse: the pytest process started above has written it.
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in (*case.findall("failure"), *case.findall("error")):
            yield Failure(_node_id(case), " ".join(outcome.get("message", "").split())[:300])


def _node_id(case: ElementTree.Element) -> str:
    """Return pytest's id of a test in JUnit's XML; empty for a module that cannot be imported."""
    file, name = case.get("classname", "").replace(".", "/") + ".py", case.get("name", "")
    group = name.rpartition("@")[2]  # pytest-xdist appends it
    is_grouped = group == file or ("/" not in group and "]" not in group)
    return f"{file}::{name.removesuffix(f'@{group}') if is_grouped else name}" if Path(file).is_file() else ""


def run_layer(layer: Layer, options: Sequence[str]) -> tuple[int, list[str]]:
    """Run a layer, and each of a few failed tests once more alone; return the exit code and a line for each failure.

    Workers of a layer compete for the cores, and a limit of time that a test needs may pass on a machine shared with
    others. What a change breaks fails alone as well. A test that passes alone is reported, so that it gets mended.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-tests-") as folder:
        report = Path(folder) / "layer.xml"
        ignored = (f"--ignore={layer.ignored}",) if layer.ignored else ()
        code = run(layer.paths, (*ignored, *options), report, layer.workers)
        failed = list(failures(report)) if code not in (0, NO_TESTS) else []
        node_ids = list(dict.fromkeys(failure.node_id for failure in failed))
        if not failed or len(node_ids) > MOST_REPEATED or not all(node_ids):
            return code, [f"FAILED {failure.node_id}: {failure.message}" for failure in failed]
        print(f"\n== again, alone: {' '.join(node_ids)}", flush=True)
        repeated = Path(folder) / "repeated.xml"
        code = run(node_ids, options, repeated)
        still = {failure.node_id for failure in failures(repeated)}
        return code, [
            f"{'FAILED TWICE' if failure.node_id in still else 'PASSED ALONE'} {failure.node_id}: {failure.message}"
            for failure in failed
        ]


def main(options: Sequence[str]) -> int:
    """Run every layer, also after one that failed; return 1 if any did."""
    results: list[tuple[Layer, int, float]] = []
    failed: list[str] = []
    for layer in LAYERS:
        print(f"\n== {' '.join(layer.paths)} ({layer.workers} at a time)", flush=True)
        began = time.monotonic()
        code, lines = run_layer(layer, options)
        failed += lines
        results.append((layer, code, time.monotonic() - began))
    for layer, code, seconds in results:
        outcome = {0: "passed", NO_TESTS: "nothing selected"}.get(code, f"FAILED ({code})")
        print(f"{' '.join(layer.paths):44} {seconds / 60:5.1f} min  {outcome}")
    print(f"{'all':44} {sum(seconds for _, _, seconds in results) / 60:5.1f} min", flush=True)
    print("\n".join(failed), flush=True)
    return int(any(code not in (0, NO_TESTS) for _, code, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
