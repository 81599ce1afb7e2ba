"""Start-up checks: a process whose dependencies are unavailable or refuse access exits and names the remedy."""

from __future__ import annotations

import asyncio

import structlog

from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings

TRIES = 3
PAUSE_S = 1.0
log = structlog.get_logger(__name__)


async def check_files(files: FileStore, settings: FilesSettings, *, pause_s: float = PAUSE_S) -> None:
    """Check that objects can be written, read and removed.

    Raises NotReady when the store refuses that; DependencyUnavailable when it did not answer in `TRIES` tries.
    """
    for tries in range(1, TRIES + 1):
        try:
            await files.check()
        except AccessDenied as error:
            raise NotReady(f"{error}: {_remedy(settings)}") from error
        except DependencyUnavailable as error:
            if tries == TRIES:
                raise
            log.warning("object store unavailable; retrying", error=str(error))
            await asyncio.sleep(pause_s)
        else:
            return


def _remedy(settings: FilesSettings) -> str:
    if settings.endpoint:
        return (
            f"grant DARKROOM_FILES__ACCESS_KEY write, read and delete permission on bucket {settings.bucket} "
            "(DARKROOM_FILES__BUCKET)"
        )
    return f"grant this process read and write permission on {settings.directory} (DARKROOM_FILES__DIRECTORY)"
