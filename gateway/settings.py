"""Settings of the HTTP gateways, read from DARKROOM_GATEWAY__* at the composition root."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from streams.settings import Group


class Delivered(StrEnum):
    """How the bytes of images are sent."""

    PROXIED = "proxied"
    PRESIGNED = "presigned"


class GatewaySettings(Group):
    """What bounds a request, and where the gateway listens."""

    host: str = Field("127.0.0.1", description="address to listen on (0.0.0.0 in containers)")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 = any free one")
    public_url: str | None = Field(None, description="base of the URLs in answers; empty = as the request came in")
    cors_origins: tuple[Origin, ...] = Field(
        (), description="origins whose pages may call the API from a browser, as a JSON list; empty = none but our own"
    )
    max_upload_bytes: int = Field(50_000_000, ge=1, description="bytes of one uploaded file")
    max_metadata_bytes: int = Field(16_384, ge=2, description="bytes of the metadata JSON")
    max_json_bytes: int = Field(65_536, ge=1024, description="bytes of a JSON request body")
    max_query_image_bytes: int = Field(10_000_000, ge=1, description="bytes of an image to search by")
    spool_dir: Path | None = Field(
        None, description="where uploads wait on disk; empty = the system's temporary folder"
    )
    upload_idle_s: float = Field(30.0, gt=0, description="seconds a client may send nothing while uploading")
    upload_total_s: float = Field(600.0, gt=0, description="seconds one upload may take to arrive")
    max_unfinished_uploads: int = Field(
        100, ge=1, description="resumable and direct uploads one owner may have begun and not finished"
    )
    upload_expires_s: float = Field(
        86_400.0, gt=0, description="seconds a resumable or direct upload may take from its beginning to its end"
    )
    direct_form_s: int = Field(
        3600, ge=1, le=604_800, description="seconds the form of a direct upload can be used; 7 days at most"
    )
    piece_bytes: int = Field(
        8 << 20, ge=64 << 10, description="bytes of a resumable upload that a killed gateway loses at most"
    )
    idempotency_lease_s: float = Field(
        15.0, gt=0, description="seconds after which whoever works on an Idempotency-Key and is silent has died"
    )
    idempotency_expiry_s: float = Field(
        86_400.0, gt=0, description="seconds an Idempotency-Key stands for the request it was first sent with"
    )
    max_batch_files: int = Field(100, ge=1, le=1000, description="images of one batch, or of one archive")
    max_batch_bytes: int = Field(500_000_000, ge=1, description="bytes of all files of a batch together")
    max_archive_ratio: int = Field(
        100, ge=1, description="how many times its packed size a file in an archive may have, above 1 MB"
    )
    annotation_wait_s: float = Field(
        2.0, gt=0, description="seconds a PATCH may wait until the read model shows it; then it is answered 202"
    )
    max_wait_s: int = Field(30, ge=0, description="seconds a request may wait for its result (Prefer: wait)")
    delivery: Delivered = Field(
        Delivered.PROXIED,
        description="how bytes are sent: proxied, through the gateway; presigned, by a redirect to the object store",
    )
    link_expires_s: int = Field(300, ge=2, le=604_800, description="seconds a link to the object store is good for")
    storage_timeout_s: float = Field(30.0, gt=0, description="seconds one call of the object store may take")
    delivery_timeout_s: float = Field(
        40.0,
        gt=0,
        description="seconds Kafka may take to confirm an event; above the producer's own limit, whose no is final",
    )
    interactive_per_minute: int = Field(
        120, ge=0, description="images of one owner a minute that may be interactive; what is more goes into bulk"
    )
    query_timeout_s: float = Field(10.0, gt=0, description="seconds one call of the read model may take")
    encode_timeout_s: float = Field(20.0, gt=0, description="seconds the CLIP encoder may take for one query")
    readiness_timeout_s: float = Field(3.0, gt=0, description="seconds one part may take to prove that it works")
    readiness_cache_s: float = Field(1.0, ge=0, description="seconds a readiness answer is reused")
    most_questions: int = Field(
        128, ge=1, description="GET requests in work at once, until their answers begin; one more is answered 503"
    )
    most_late_s: float = Field(
        3.0, gt=0, description="seconds the event loop may be behind; what is asked while it is more is answered 503"
    )
    retry_after_s: int = Field(5, ge=1, description="Retry-After of a 503, in seconds")
    poll_after_s: int = Field(1, ge=1, description="Retry-After of a 202 and of a job not finished, in seconds")
    search_limit: int = Field(20, ge=1, description="answers of a search that names no limit")
    max_search_limit: int = Field(100, ge=1, description="answers of one search at most")
    max_query_length: int = Field(500, ge=1, description="characters of a search query")
    snippet_length: int = Field(240, ge=20, description="characters of text shown with a search answer")
    admin_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="the bearer token of the admin API; empty = API keys and JWTs with the scope `admin` open it",
    )


ANY = "*"
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def _checked(origin: str) -> str:
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"not an origin, which is like https://app.example.org, without a path: {origin!r}")
    return origin


Origin = Annotated[str, AfterValidator(_checked)]
