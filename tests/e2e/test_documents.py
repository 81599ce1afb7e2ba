"""Documents of several pages through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.values import ImageState
from streams.object_store.keys import image_prefix
from tests.e2e.system import PATIENCE_S, RunningSystem, until
from tests.support import documents

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system

WORDS = ("Invoice", "Delivery", "Receipt")


def test_a_pdf_is_read_to_its_last_page_and_deleted_with_all_pages(system: RunningSystem, tmp_path: Path) -> None:
    """A PDF is shown by its first page, found by a word of its last one, and leaves no page behind."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(documents.scanned_pdf([documents.page(word) for word in WORDS]))
    job = system.client.submit(path)
    result = system.client.wait(job.job_id, timeout_s=PATIENCE_S)
    assert (result.status, result.error) == (ImageState.COMPLETED, None)
    assert sorted(result.urls) == ["large", "medium", "original", "thumbnail"]
    assert (result.metadata.source_format, result.metadata.frames, result.metadata.pages) == ("pdf", 3, 3)
    assert result.text is not None
    assert result.text.content.split("\f") == list(WORDS)
    assert [page.content for page in result.text.pages] == list(WORDS)
    stored = {key.rsplit("/", 1)[1].split(".")[0] for key in system.stored(image_prefix(job.image_id))}
    assert stored >= {"master", "page-2", "page-3"}
    assert [found.image_id for found in system.client.search(WORDS[-1]).items] == [job.image_id]
    system.client.delete(job.image_id)
    until(lambda: not system.stored(image_prefix(job.image_id)), "no page is left")
