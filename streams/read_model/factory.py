"""Opens the read model that the settings select."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.protocol import ReadModel
from streams.settings import QdrantSettings


def open_read_model(
    settings: QdrantSettings, breakers: Breakers | None = None
) -> AbstractAsyncContextManager[ReadModel]:
    """Open the read model: a Qdrant server when a URL is given, else in this process; behind breakers, if given.

    Creates what is missing. Entering raises DependencyUnavailable when the server does not answer, NotReady when the
    collection does not fit or another process has the folder open.
    """
    # Imported late: these modules import this one, and a process without a read model needs no Qdrant client.
    if breakers is not None:
        from streams.read_model.with_breakers import open_breaking  # noqa: PLC0415

        return open_breaking(open_read_model(settings), breakers)
    if settings.url:
        from streams.read_model.qdrant_server import open_server_read_model  # noqa: PLC0415

        return open_server_read_model(settings)
    from streams.read_model.qdrant_embedded import open_local_read_model  # noqa: PLC0415

    return open_local_read_model(settings)
