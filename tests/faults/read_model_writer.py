"""Records facts in a read model of its own, until it is killed: `python -m tests.faults.read_model_writer FOLDER`.

FOLDER/wanted.txt names the images. A fact's id is appended to FOLDER/acknowledged.txt once the indexer's functions have
returned, as the offset is committed then; facts that are there already are not delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from agents.indexing.record_facts import conclude, record
from schemas.events.facts import Fact
from streams.object_store.factory import open_files
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from tests.support.engine_template import create_new_engines
from tests.support.facts import Facts

CONCURRENCY = 16  # the indexer's
WANTED, ACKNOWLEDGED, READY = "wanted.txt", "acknowledged.txt", "ready.txt"
STEMMING = "DARKROOM_QDRANT__STEMMING"


def settings_of(folder: Path, stemming: str = "") -> QdrantSettings:
    """Return the settings of the read model in a folder."""
    return QdrantSettings(path=folder / "qdrant", stemming=stemming, timeout_s=60)


def facts_of(image_id: str, owner: str = "anna") -> list[Fact]:
    """Return an image's facts; its text has a word of its own."""
    facts = Facts(image_id, owner=owner, placed=True)
    word = image_id.replace("-", "")
    return [
        facts.sanitized(),
        facts.resized(),
        facts.text(f"cats and dogs {word}"),
        facts.detected("bus"),
        facts.embedded(),
    ]


def acknowledged(folder: Path) -> set[str]:
    """Return the ids of the acknowledged facts."""
    file = folder / ACKNOWLEDGED
    return set(file.read_text().split()) if file.exists() else set()


async def write(folder: Path) -> None:
    """Record every wanted fact that is not acknowledged; then wait."""
    done = acknowledged(folder)
    images = (folder / WANTED).read_text().split()
    waiting = [
        left for image_id in reversed(images) if (left := [fact for fact in facts_of(image_id) if fact.id not in done])
    ]
    logging.basicConfig(level=logging.INFO)
    log = os.open(folder / ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    create_new_engines()  # as in production: it may be killed while it does
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(settings_of(folder, os.environ.get(STEMMING, ""))) as read_model,
    ):
        (folder / READY).touch()

        async def index() -> None:
            while waiting:
                for fact in waiting.pop():
                    known = await record(fact, read_model, Tombstones(files))
                    assert known is not None
                    await conclude(fact, known, read_model)
                    os.write(log, f"{fact.id}\n".encode())

        await asyncio.gather(*(index() for _ in range(CONCURRENCY)))
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
