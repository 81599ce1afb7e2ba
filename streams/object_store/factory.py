"""Opens the configured object store."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from streams.concurrency.circuit_breaker import Breakers
from streams.object_store.directory import open_directory_files
from streams.object_store.protocol import FileStore
from streams.object_store.with_breakers import open_breaking
from streams.settings import FilesSettings


def open_files(settings: FilesSettings, breakers: Breakers | None = None) -> AbstractAsyncContextManager[FileStore]:
    """Open the adapter the settings name: S3 if an endpoint is set, else a directory; behind breakers, if given.

    Creates the bucket if it is missing. Entering raises DependencyUnavailable if the store does not answer, and
    NotReady if it refuses the credentials.
    """
    if breakers is not None:
        return open_breaking(open_files(settings), breakers)
    if settings.endpoint:
        from streams.object_store.s3 import open_s3_files  # noqa: PLC0415 - a directory needs no S3 SDK

        return open_s3_files(settings)
    return open_directory_files(settings)
