"""Positions of background scans, kept in the object store: after a restart a scan continues instead of beginning again.

`maintenance/{name}.json` contains the position of each scan that is not at its beginning. Of several processes that
scan, each continues from its own position, and the last one to store it wins: a scan may examine objects twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from pydantic import TypeAdapter

from streams.object_store.protocol import FileStore, ObjectMissing

_BYTES = 1 << 16  # read limit, far above the size of any positions
_POSITIONS = TypeAdapter(dict[str, str])
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class StoredPositions:
    """The positions of one process's scans, by scan. Calls raise DependencyUnavailable."""

    files: FileStore
    name: str
    _stored: dict[str, str] | None = None  # None: not read yet

    async def load(self) -> Mapping[str, str] | None:
        """Return the stored positions, at the first call only: None afterwards. Unreadable ones count as none."""
        if self._stored is not None:
            return None
        try:
            self._stored = _POSITIONS.validate_json(await self.files.get(self._key, limit=_BYTES))
        except ObjectMissing:
            self._stored = {}
        except ValueError as error:  # too large, or a ValidationError
            log.warning("stored positions unreadable; starting over", key=self._key, error=str(error)[:300])
            self._stored = {}
        return dict(self._stored)

    async def store(self, positions: Mapping[str, str | None]) -> None:
        """Store the positions, unless they are the stored ones; None is the beginning of a scan."""
        moved = {scan: position for scan, position in positions.items() if position is not None}
        if moved == self._stored:
            return
        if moved:
            await self.files.put(self._key, _POSITIONS.dump_json(moved), content_type="application/json")
        else:
            await self.files.delete(self._key)
        self._stored = moved

    @property
    def _key(self) -> str:
        return f"maintenance/{self.name}.json"
