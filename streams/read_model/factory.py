"""Opens the read model that the settings select."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.protocol import ReadModel
from streams.read_model.with_breakers import open_breaking
from streams.settings import QdrantSettings

if TYPE_CHECKING:
    from streams.read_model.qdrant.documents import Derivation
    from streams.read_model.qdrant.points import Points

ENGINE_THREADS = 2  # with more, calls spend their time waiting for each other's locks


def open_read_model(
    settings: QdrantSettings, breakers: Breakers | None = None
) -> AbstractAsyncContextManager[ReadModel]:
    """Open the read model: a Qdrant server if a URL is set, else its engine in this process; behind breakers, if given.

    Creates what is missing. Entering raises DependencyUnavailable if the server does not answer, and NotReady if the
    collection does not fit or another process has the folder open.
    """
    if breakers is not None:
        return open_breaking(open_read_model(settings), breakers)
    return _open(settings)


@asynccontextmanager
async def _open(settings: QdrantSettings) -> AsyncIterator[ReadModel]:
    # Imported here: a process that never opens a read model loads no Qdrant client.
    from streams.read_model.qdrant.documents import Derivation  # noqa: PLC0415
    from streams.read_model.qdrant.model import QdrantReadModel  # noqa: PLC0415
    from streams.read_model.qdrant.parameters import search_params  # noqa: PLC0415
    from streams.read_model.words import Analyzer  # noqa: PLC0415

    derivation = Derivation(Analyzer(settings.stemming))
    points = _server(settings) if settings.url else _engine(settings)
    model = QdrantReadModel(
        points,
        derivation,
        threads=settings.pool_size if settings.url else ENGINE_THREADS,
        longest_s=2 * settings.timeout_s,
        search=search_params(settings) if settings.url else None,
    )
    try:
        await model.open(None if settings.url else _fill(settings, points, derivation))
        yield model
    finally:
        await model.close()


def _engine(settings: QdrantSettings) -> Points:
    from streams.read_model.qdrant.edge_points import EdgePoints  # noqa: PLC0415

    return EdgePoints(settings.path / "edge" / settings.collection)


def _server(settings: QdrantSettings) -> Points:
    from streams.read_model.qdrant.connection import connect  # noqa: PLC0415
    from streams.read_model.qdrant.server_points import ServerPoints  # noqa: PLC0415

    return ServerPoints(connect(settings), settings)


def _fill(settings: QdrantSettings, points: Points, derivation: Derivation) -> Callable[[], None] | None:
    """Return what fills the engine's collection from the files of earlier versions, if there are any."""
    from streams.read_model.qdrant.local_mode_import import has_local_mode_data, move_from_local_mode  # noqa: PLC0415

    if not has_local_mode_data(settings.path, settings.collection):
        return None
    return partial(move_from_local_mode, settings.path, settings.collection, points, derivation)
