"""Rotation of log files that other processes append to: the file is copied, then truncated.

The processes keep their file open, so that it cannot be renamed. They opened it for appending, so that they continue
at its new end. Lines written between copy and truncation are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

MAX_BYTES = 10 << 20
KEPT = 3  # files of one log, with the current one; as in infra/compose.yaml
_CHECK_S = 5.0


def rotate(log: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> bool:
    """Rotate a log larger than `max_bytes` to `log.1`, `log.1` to `log.2` …; return whether it was. Blocks.

    Raises OSError. At most `kept` files remain. A missing log is no error.
    """
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return False
    if size <= max_bytes:
        return False
    copy = log.with_name(f"{log.name}.copy")
    try:
        shutil.copy(log, copy)  # with the mode
    except OSError:
        copy.unlink(missing_ok=True)  # of a full disk; older files are kept
        raise
    for number in reversed(range(1, kept - 1)):
        with contextlib.suppress(FileNotFoundError):
            _numbered(log, number).replace(_numbered(log, number + 1))
    copy.replace(_numbered(log, 1))
    os.truncate(log, 0)
    return True


async def keep_rotated(logs: Callable[[], Iterable[Path]]) -> None:
    """Rotate logs by size until cancelled. A log that cannot be rotated, as on a full disk, is tried again."""
    while True:
        for log in logs():
            with contextlib.suppress(OSError):
                await asyncio.to_thread(rotate, log)
        await asyncio.sleep(_CHECK_S)


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
