"""Start-up checks: what a process needs must be there and let us in, or it does not start and says what to change."""

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
    """Prove that objects can be written, read and removed.

    Raises NotReady when the store answers and refuses that; DependencyUnavailable when it did not answer several times.
    """
    for tries in range(1, TRIES + 1):
        try:
            await files.check()
        except AccessDenied as error:
            raise NotReady(f"{error}: {_remedy(settings)}") from error
        except DependencyUnavailable as error:
            if tries == TRIES:
                raise
            log.warning("the object store does not answer yet", error=str(error))
            await asyncio.sleep(pause_s)
        else:
            return


def _remedy(settings: FilesSettings) -> str:
    if settings.endpoint:
        return (
            f"let the account of DARKROOM_FILES__ACCESS_KEY write, read and delete in bucket {settings.bucket} "
            "(DARKROOM_FILES__BUCKET)"
        )
    return f"this process must be able to write and read in {settings.directory} (DARKROOM_FILES__DIRECTORY)"
