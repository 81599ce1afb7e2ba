"""Opens the read model that the settings select."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.protocol import ReadModel
from streams.read_model.with_breakers import open_breaking
from streams.settings import QdrantSettings


def open_read_model(
    settings: QdrantSettings, breakers: Breakers | None = None
) -> AbstractAsyncContextManager[ReadModel]:
    """Open the read model: a Qdrant server if a URL is set, else in this process; behind breakers, if given.

    Creates what is missing. Entering raises DependencyUnavailable if the server does not answer, and NotReady if the
    collection does not fit or another process has the folder open.
    """
    if breakers is not None:
        return open_breaking(open_read_model(settings), breakers)
    # Imported here: a process that never opens a read model loads no Qdrant client.
    if settings.url:
        from streams.read_model.qdrant_server import open_server_read_model  # noqa: PLC0415

        return open_server_read_model(settings)
    from streams.read_model.qdrant_embedded import open_local_read_model  # noqa: PLC0415

    return open_local_read_model(settings)
