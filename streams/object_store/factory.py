"""Opens the object store that the settings select."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from streams.concurrency.circuit_breaker import Breakers
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings


def open_files(settings: FilesSettings, breakers: Breakers | None = None) -> AbstractAsyncContextManager[FileStore]:
    """Open the adapter the settings name: S3 when an endpoint is given, else a directory; behind breakers, if given.

    Creates the bucket if it is missing. Entering raises DependencyUnavailable if the store does not answer, and
    NotReady if it refuses the credentials.
    """
    if breakers is not None:
        from streams.object_store.with_breakers import open_breaking  # noqa: PLC0415 - it imports this module

        return open_breaking(open_files(settings), breakers)
    if settings.endpoint:
        from streams.object_store.s3 import open_s3_files  # noqa: PLC0415 - the directory needs no S3 SDK

        return open_s3_files(settings)
    from streams.object_store.directory import open_directory_files  # noqa: PLC0415

    return open_directory_files(settings)
