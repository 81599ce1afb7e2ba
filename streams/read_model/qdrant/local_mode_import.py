"""Moves a read model of qdrant-client's local mode, which earlier versions used in process, to the engine.

It happens before the read model is used, and is repeated from the start if it is interrupted; the old files are removed
only when everything is on disk, because they hold what users may delete later.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from qdrant_client import QdrantClient, models

from streams.errors import NotReady
from streams.read_model.qdrant.documents import Derivation, to_history, to_record
from streams.read_model.qdrant.points import Points
from streams.read_model.records import VECTOR

log = logging.getLogger(__name__)

PAGE = 500
PROGRESS_S = 5.0


def has_local_mode_data(folder: Path, collection: str) -> bool:
    """Return whether a folder holds this collection in the files of qdrant-client's local mode."""
    return (folder / "collection" / collection / "storage.sqlite").is_file()


def move_from_local_mode(folder: Path, collection: str, points: Points, derivation: Derivation) -> None:
    """Copy all images of a local mode collection, then remove its files. NotReady if another process has it open."""
    try:
        old = QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise NotReady(f"the read model in {folder} is open in another process: stop that process") from error
    try:
        total, done = old.count(collection).count, 0
        log.info("moving the read model to its new files", extra={"images": total})
        offset: models.ExtendedPointId | None = None
        said = time.monotonic()
        while True:
            page, offset = old.scroll(collection, limit=PAGE, offset=offset, with_payload=True, with_vectors=True)
            if page:
                moved = models.PointsList(points=[_moved(point, derivation) for point in page])
                points.write([models.UpsertOperation(upsert=moved)])
            done += len(page)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                log.info("moving the read model to its new files", extra={"images": total, "done": done})
            if offset is None:
                break
        points.flush()
        log.info("the read model is in its new files", extra={"images": done})
    finally:
        old.close()
    shutil.rmtree(folder / "collection" / collection)


def _moved(point: models.Record, derivation: Derivation) -> models.PointStruct:
    payload = point.payload or {}
    found = derivation.point(to_record(payload), to_history(payload))
    vectors = point.vector if isinstance(point.vector, dict) else {}
    dense = {VECTOR: [float(value) for value in vectors[VECTOR]]} if vectors.get(VECTOR) else {}  # type: ignore[arg-type]
    sparse = found.vector if isinstance(found.vector, dict) else {}
    return found.model_copy(update={"vector": {**sparse, **dense}})
