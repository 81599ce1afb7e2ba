"""Settings of the HTTP gateways, read from DARKROOM_GATEWAY__* at the composition root."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from streams.settings import Group


class Delivered(StrEnum):
    """How the bytes of images are delivered."""

    PROXIED = "proxied"
    PRESIGNED = "presigned"


class GatewaySettings(Group):
    """Limits of requests, and the address of the gateway."""

    host: str = Field("127.0.0.1", description="address to listen on (0.0.0.0 in containers)")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 = any free one")
    public_url: str | None = Field(None, description="base of the URLs in responses; empty = that of the request")
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="origins whose pages may call the API from a browser, as a JSON list; empty = its own only",
    )
    max_upload_bytes: int = Field(50_000_000, ge=1, description="maximum bytes of one uploaded file")
    max_metadata_bytes: int = Field(16_384, ge=2, description="maximum bytes of the metadata JSON")
    max_json_bytes: int = Field(65_536, ge=1024, description="maximum bytes of a JSON request body")
    max_query_image_bytes: int = Field(10_000_000, ge=1, description="maximum bytes of an image to search by")
    spool_dir: Path | None = Field(
        None, description="folder for uploads in progress; empty = the system's temporary folder"
    )
    max_spool_bytes: int = Field(
        700_000_000,
        ge=1,
        description="maximum bytes on disk of all uploads in progress together; more get 503. Less than the space of "
        "spool_dir, which is a container's /tmp, and of its memory limit if that is a tmpfs",
    )
    upload_idle_s: float = Field(30.0, gt=0, description="seconds an upload may receive no data")
    upload_total_s: float = Field(600.0, gt=0, description="seconds one upload may take")
    max_unfinished_uploads: int = Field(
        100, ge=1, description="maximum unfinished resumable and direct uploads of one owner"
    )
    upload_expires_s: float = Field(
        86_400.0, gt=0, description="seconds from the start of a resumable or direct upload to its expiry"
    )
    direct_form_s: int = Field(
        3600, ge=1, le=604_800, description="seconds the form of a direct upload is valid; 7 days at most"
    )
    piece_bytes: int = Field(
        8 << 20, ge=64 << 10, description="maximum bytes of a resumable upload that are lost when a gateway is killed"
    )
    idempotency_lease_s: float = Field(
        15.0, gt=0, description="seconds without renewal after which the lease of an Idempotency-Key expires"
    )
    idempotency_expiry_s: float = Field(
        86_400.0, gt=0, description="seconds an Idempotency-Key is remembered with its first request"
    )
    max_batch_files: int = Field(100, ge=1, le=1000, description="maximum images of one batch, or of one archive")
    max_batch_bytes: int = Field(500_000_000, ge=1, description="maximum bytes of all files of a batch together")
    max_archive_ratio: int = Field(
        100, ge=1, description="maximum ratio of unpacked to packed size of a file in an archive, above 1 MB"
    )
    annotation_wait_s: float = Field(
        2.0, gt=0, description="seconds a PATCH waits for the read model to have the change; then the response is 202"
    )
    max_wait_s: int = Field(30, ge=0, description="seconds a request may wait for its result (Prefer: wait)")
    delivery: Delivered = Field(
        Delivered.PROXIED,
        description="how bytes are delivered: proxied, by the gateway; presigned, by a redirect to the object store",
    )
    link_expires_s: int = Field(300, ge=2, le=604_800, description="seconds a link to the object store is valid")
    storage_timeout_s: float = Field(30.0, gt=0, description="seconds one call of the object store may take")
    delivery_timeout_s: float = Field(
        40.0,
        gt=0,
        description="seconds Kafka may take to confirm an event; longer than the producer's own timeout",
    )
    interactive_per_minute: int = Field(
        120, ge=0, description="interactive images of one owner per minute; more go into the bulk lane"
    )
    query_timeout_s: float = Field(10.0, gt=0, description="seconds one call of the read model may take")
    encode_timeout_s: float = Field(20.0, gt=0, description="seconds the CLIP encoder may take for one query")
    readiness_timeout_s: float = Field(3.0, gt=0, description="seconds the readiness check of one part may take")
    readiness_cache_s: float = Field(1.0, ge=0, description="seconds a readiness result is cached")
    most_questions: int = Field(
        128, ge=1, description="maximum GET requests in progress, until their responses begin; more get 503"
    )
    most_late_s: float = Field(
        3.0, gt=0, description="maximum delay of the event loop in seconds; above it requests get 503"
    )
    retry_after_s: int = Field(5, ge=1, description="Retry-After of a 503, in seconds")
    poll_after_s: int = Field(1, ge=1, description="Retry-After of a 202 and of an unfinished job, in seconds")
    search_limit: int = Field(20, ge=1, description="results of a search without a limit")
    max_search_limit: int = Field(100, ge=1, description="maximum results of one search")
    min_text_similarity: float = Field(
        0.23,
        ge=-1,
        le=1,
        description="minimum cosine of an image to the words that find it by meaning, unless the request has its own; "
        "with CLIP ViT-B/32 names of what a photo shows have 0.24 to 0.27, 98 % of other names less than 0.23",
    )
    min_image_similarity: float = Field(
        0.7,
        ge=-1,
        le=1,
        description="minimum cosine of an image to the image that finds it, unless the request has its own; with CLIP "
        "ViT-B/32 photos of unlike subjects have 0.46 to 0.67, two cats 0.87",
    )
    max_query_length: int = Field(500, ge=1, description="maximum characters of a search query")
    snippet_length: int = Field(240, ge=20, description="characters of text shown with a search result")
    admin_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="the bearer token of the admin API; empty = API keys and JWTs with the scope `admin` only",
    )


ANY = "*"
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def _checked(origin: str) -> str:
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"not an origin like https://app.example.org, without a path: {origin!r}")
    return origin


Origin = Annotated[str, AfterValidator(_checked)]
