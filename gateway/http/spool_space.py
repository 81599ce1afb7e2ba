"""The bytes that uploads in progress have on disk, of all requests of this process together, and their limit.

Without it, uploads of several owners, each within its limits, fill a container's /tmp, and then every upload fails.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from gateway.http.problems import Problem
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode


@dataclass(slots=True)
class _Folder:
    """The files of one request."""

    settings: GatewaySettings
    files: dict[Path, int] = field(default_factory=dict)  # bytes by path


class SpoolSpace:
    """Counts the bytes of spooled files. Thread-safe: files are written in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[Path, _Folder] = {}
        self.used = 0  # bytes

    def open(self, folder: Path, settings: GatewaySettings) -> None:
        """Count the files of a folder."""
        with self._lock:
            self._folders[folder] = _Folder(settings)

    def close(self, folder: Path) -> None:
        """Count the files of a folder no longer."""
        with self._lock:
            found = self._folders.pop(folder, None)
            self.used -= sum(found.files.values()) if found else 0

    def grow(self, file: Path, size: int) -> None:
        """Count more bytes of a file, before they are written. Raises Problem (503) above the limit.

        Files in other folders than those opened are not counted.
        """
        with self._lock:
            found = self._folders.get(file.parent)
            if found is None:
                return
            if self.used + size > found.settings.max_spool_bytes:
                raise _full(found.settings.retry_after_s)
            self.used += size
            found.files[file] = found.files.get(file, 0) + size

    def remove(self, file: Path) -> None:
        """Remove a file that may be missing, and count it no longer. Raises OSError."""
        file.unlink(missing_ok=True)
        with self._lock:
            found = self._folders.get(file.parent)
            self.used -= found.files.pop(file, 0) if found else 0


SPACE = SpoolSpace()
"""The space of this process."""


def _full(retry_after_s: int) -> Problem:
    detail = "Uploads in progress use all disk space they may have. Nothing was accepted or changed; retry later."
    headers = {"Retry-After": str(retry_after_s), "Connection": "close"}
    return Problem(ProblemCode.DEPENDENCY_UNAVAILABLE, detail, headers=headers)
