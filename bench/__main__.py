"""`python -m bench [NAME…]`: measures, prints a table, and saves it in bench/results. It never fails a build."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streams.settings import TelemetrySettings
from streams.telemetry.logs import configure_logs

BENCHMARKS = (
    "renditions",
    "clip",
    "features",
    "detection",
    "noop",
    "guarantees",
    "pipeline",
    "lanes",
    "memory",
    "live",
    "gateway_load",
    "unknown_keys",
    "read_model",
)


def _data_dir() -> Path:
    configured = os.environ.get("DARKROOM_TEST_DATA")
    folder = Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "images").is_dir():
        raise SystemExit(f"no test data at {folder}: set DARKROOM_TEST_DATA to a folder with images/ and models/")
    return folder


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table("work", "baseline s", "ours s", "reached", "target", "notes")
    for row in rows:
        timed = row["baseline_s"] is not None
        seconds = (f"{row['baseline_s']:.2f}", f"{row['ours_s']:.2f}") if timed else ("", "")
        reached = f"{row['ratio']:.2f}×" if timed else f"{row['ratio']:.0f} MB"
        target = f"≥ {row['target']}×" if timed else f"≤ {row['target']} MB"
        table.add_row(str(row["work"]), *seconds, reached, target, str(row["notes"]))
    return table


def main() -> None:
    """Run the named benchmarks, or all."""
    configure_logs(TelemetrySettings(log_level="ERROR"), process="bench")
    console = Console(width=160)
    data_dir = _data_dir()
    saved = Path(__file__).with_name("results") / "latest.json"
    kept = json.loads(saved.read_text()) if saved.is_file() else {}
    rows: list[dict[str, object]] = []
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            raise SystemExit(f"unknown benchmark {name}; allowed: {', '.join(BENCHMARKS)}")
        console.print(f"{time.strftime('%H:%M:%S')}  measuring {name}")
        found = import_module(f"bench.{name}").run(data_dir)
        rows += found
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kept[name] = {"when": when, "cores": os.cpu_count(), "machine": platform.machine(), "rows": found}
    console.print(_table(rows))
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(json.dumps(kept, indent=1) + "\n")
    console.print(f"saved in bench/results/{saved.name}")


if __name__ == "__main__":
    main()
