"""An application of the generated client: `python generated_client.py URL IMAGE`, run in the package's parent folder.

It uses only what the generator made of docs/openapi.json.
"""

from __future__ import annotations

import io
import json
import sys
import time
from http import HTTPStatus
from pathlib import Path

from client import Client  # type: ignore[import-not-found]  # the generated package
from client.api.ingest import post_images_upload  # type: ignore[import-not-found]
from client.api.query import (  # type: ignore[import-not-found]
    get_images_by_image_id_direct,
    get_images_jobs_by_job_id_result,
)
from client.models import PostImagesUploadFilesBody, PostImagesUploadFilesBodyMetadata  # type: ignore[import-not-found]
from client.types import File  # type: ignore[import-not-found]

PATIENCE_S = 240.0


def main(url: str, image: Path) -> None:
    """Upload an image, wait for its result, fetch one size; print both as JSON."""
    metadata = PostImagesUploadFilesBodyMetadata.from_dict({"album": "generated"})
    file = File(payload=io.BytesIO(image.read_bytes()), file_name=image.name, mime_type="image/jpeg")
    with Client(base_url=url) as client:
        job = post_images_upload.sync(
            client=client, body=PostImagesUploadFilesBody(file=file, metadata=metadata, tags="a,b")
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = get_images_jobs_by_job_id_result.sync_detailed(job.job_id, client=client)
            if answer.status_code is HTTPStatus.OK or time.monotonic() > deadline:
                break
            time.sleep(float(answer.headers.get("Retry-After", "1")))
        size = get_images_by_image_id_direct.sync_detailed(job.image_id, client=client, size="thumbnail")
    sys.stdout.write(
        json.dumps(
            {"result": answer.parsed.to_dict(), "bytes": len(size.content), "kind": size.headers["content-type"]}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
