"""Index of the directory store: finds the objects of a flat folder by the start of their name, without reading it.

`jobs/` contains one object per job, of all images together, and a folder has no search by prefix: at 100 000 receipts
reading it takes a third of a second. The index contains an empty file `{stem}/{stem}.{rest}` for each of them.

Its entries are written before their object and removed after it. Those of no object are ignored, so that it only has
to be complete: it is rebuilt after each start of the machine, since its entries are not synced to disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

INDEXED = "jobs"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # absent: not Linux, and the index is never used
_REBUILD_CHECKS = 1000  # entries between two checks whether the store was closed


class NameIndex:
    """The index of one store. Calls raise OSError."""

    def __init__(self, data: Path, root: Path) -> None:
        self._folder = data / INDEXED
        self._root = root
        self._mark = root / "complete"
        self._boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        self._complete = False

    def add(self, key: str) -> None:
        """Add an entry, if the key is in the indexed folder."""
        entry = self._entry(key)
        while entry is not None:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its folder was removed with another entry meanwhile
                entry.touch()
                return

    def remove(self, key: str) -> None:
        """Remove an entry, if the key is in the indexed folder."""
        entry = self._entry(key)
        if entry is not None:
            entry.unlink(missing_ok=True)
            with suppress(OSError):  # it contains other entries, or does not exist
                entry.parent.rmdir()

    def find(self, prefix: str) -> list[str] | None:
        """Return the keys under a prefix, some of them perhaps of removed objects; None if only the folder knows."""
        if self._entry(prefix) is None or not self._is_complete():
            return None
        stem = prefix.removeprefix(f"{INDEXED}/").partition(".")[0]
        try:
            keys = [f"{INDEXED}/{entry.name}" for entry in self._folder_of(stem).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(key for key in keys if key.startswith(prefix))

    def rebuild(self, is_closed: Callable[[], bool]) -> None:
        """Add what is missing after a start of the machine, or in a store of an earlier version."""
        if not self._boot or self._is_complete():
            return
        self._root.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for number, entry in enumerate(entries):
                if number % _REBUILD_CHECKS == 0 and is_closed():
                    return
                self.add(f"{INDEXED}/{entry.name}")
        self._mark.write_text(self._boot)

    def _is_complete(self) -> bool:
        if not self._complete and self._boot:
            with suppress(FileNotFoundError):
                self._complete = self._mark.read_text() == self._boot
        return self._complete

    def _entry(self, key: str) -> Path | None:
        folder, _, name = key.partition("/")
        stem, dot, _ = name.partition(".")
        if folder != INDEXED or "/" in name or not stem or not dot:
            return None
        return self._folder_of(stem) / name

    def _folder_of(self, stem: str) -> Path:
        return self._root / INDEXED / stem[-2:] / stem
