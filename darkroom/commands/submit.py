"""`darkroom submit` and `darkroom search`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from darkroom.commands.profile_option import EXAMPLE, read_profile
from darkroom.commands.tables import Shown, answer_lines, reason_lines, results_table, stage_progress
from gateway.client import AsyncDarkroom, Darkroom, Refused, Unreachable
from schemas.http.jobs import JobStatus
from schemas.http.submissions import ProfileRequest
from schemas.values import ImageState, Lane

Url = Annotated[str, typer.Option("--url", help="Base URL of the gateway.", envvar="DARKROOM_URL")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", help="A JWT or an API key.", envvar=["DARKROOM_TOKEN", "DARKROOM_API_KEY"], show_default=False
    ),
]
DEFAULT_URL = "http://127.0.0.1:8080"
AT_ONCE = 8
BULK_ABOVE = 20  # more images than that go to the bulk lane by default
POLL_S = 0.5
LIMIT_CODES = frozenset({"rate-limited", "quota-exceeded"})  # further uploads would be rejected too
IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".heic", ".heif",
    ".pdf",
}  # fmt: skip


def sources_of(given: Sequence[str]) -> list[str]:
    """Return files and URLs, with folders replaced by the images in them. Raises FileNotFoundError."""
    found: list[str] = []
    for source in given:
        if source.startswith(("http://", "https://")):
            found.append(source)
        elif Path(source).is_dir():
            found += sorted(str(p) for p in Path(source).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif Path(source).is_file():
            found.append(source)
        else:
            raise FileNotFoundError(source)
    return found


def lane_of(count: int, bulk: bool | None) -> Lane:
    """Return the lane for `count` images: the requested one, else by their number."""
    return Lane.BULK if (count > BULK_ABOVE if bulk is None else bulk) else Lane.INTERACTIVE


async def send_all(
    client: AsyncDarkroom,
    sources: Sequence[str],
    *,
    bucket: str,
    patience_s: float,
    moved: Callable[[str, int, int], None],
    lane: Lane = Lane.INTERACTIVE,
    profile: ProfileRequest | None = None,
) -> tuple[list[Shown], dict[str, str]]:
    """Send images and wait until each has ended; return the results, and the rejections by source.

    `moved` is called with a progress line, images ended, images in total. After a rate-limit or quota error nothing
    more is sent. Raises TimeoutError.
    """
    gate = asyncio.Semaphore(AT_ONCE)
    jobs: dict[str, tuple[str, float]] = {}
    refused: dict[str, str] = {}
    full: str | None = None

    async def send(source: str) -> None:
        nonlocal full
        async with gate:
            if full is not None:
                refused[source] = full
                return
            try:
                submitted = await client.submit(source, bucket=bucket, lane=lane, profile=profile)
            except Refused as refusal:
                refused[source] = str(refusal)
                if refusal.code in LIMIT_CODES:
                    full = str(refusal)
            else:
                jobs[submitted.job_id] = (source, time.monotonic())
                moved(f"sending: {len(jobs)} of {len(sources)}", 0, len(sources))

    await asyncio.gather(*(send(source) for source in sources))
    ended: dict[str, float] = {}
    statuses: dict[str, JobStatus] = {}
    async with asyncio.timeout(patience_s):
        while len(ended) < len(jobs):
            for job_id in [job for job in jobs if job not in ended]:
                statuses[job_id] = await client.status(job_id)
                if statuses[job_id].status is not ImageState.PROCESSING:
                    ended[job_id] = time.monotonic() - jobs[job_id][1]
            moved(stage_progress(statuses.values(), len(jobs)), len(ended), len(jobs))
            await asyncio.sleep(POLL_S)
    names = {job: Path(source).name or source for job, (source, _) in jobs.items()}
    shown = [Shown(names[job], await client.result(job), ended[job]) for job in jobs]
    return shown, refused


def refusal_lines(refused: Mapping[str, str]) -> list[str]:
    """Return one line per rejected image; those over a limit or quota share one line and a hint."""
    full = [source for source, reason in refused.items() if any(code in reason for code in LIMIT_CODES)]
    lines = [f"rejected: {source}: {reason}" for source, reason in refused.items() if source not in full]
    if full:
        lines.append(f"not sent: {len(full)} images, first {full[0]}: {refused[full[0]]}")
        lines.append("   To raise limits and quotas, see DARKROOM_LIMITS__UPLOADS in docs/operations.md.")
    return lines


def submit(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or URLs.")],
    bucket: Annotated[str, typer.Option(help="Bucket of the images.")] = "default",
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for all images.")] = 600.0,
    bulk: Annotated[bool | None, typer.Option(help=f"Use the bulk lane; default: above {BULK_ABOVE} images.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help=f"The stages that run, and their parameters, as JSON, for example {EXAMPLE}. Default: all."),
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Send images, wait until each has ended, print the results; exit 1 if one failed or was rejected."""
    try:
        wanted = sources_of(sources)
    except FileNotFoundError as error:
        raise SystemExit(f"No such file or folder: {error}") from error
    lane, asked = lane_of(len(wanted), bulk), read_profile(profile, ProfileRequest)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("sending", total=len(wanted))

        async def run() -> tuple[list[Shown], dict[str, str]]:
            def moved(line: str, done: int, total: int) -> None:
                progress.update(bar, description=line, completed=done, total=total)

            async with AsyncDarkroom(url, token=token) as client:
                return await send_all(
                    client, wanted, bucket=bucket, patience_s=patience_s, moved=moved, lane=lane, profile=asked
                )

        try:
            shown, refused = asyncio.run(run())
        except Unreachable as error:
            raise SystemExit(
                f"Darkroom at {url} does not answer: {error}. Check the URL, or start it with `make up`."
            ) from error
        except TimeoutError as error:
            raise SystemExit(
                f"Not all images ended within {patience_s:.0f} s. Raise --patience-s, or run `darkroom reconcile`."
            ) from error
    Console().print(results_table(shown))
    print("\n".join(reason_lines(shown)))
    print("\n".join(refusal_lines(refused)))
    bad = refused or any(row.result.status is not ImageState.COMPLETED for row in shown)
    raise typer.Exit(1 if bad else 0)


def search(
    words: Annotated[list[str], typer.Argument(help="The query.")],
    limit: Annotated[int, typer.Option(help="Most results.")] = 10,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Search images by meaning (with CLIP), text and detected labels."""
    try:
        with Darkroom(url, token=token) as client:
            answer = client.search(" ".join(words), limit=limit)
    except Unreachable as error:
        raise SystemExit(
            f"Darkroom at {url} does not answer: {error}. Check the URL, or start it with `make up`."
        ) from error
    except Refused as refusal:
        raise SystemExit(str(refusal)) from refusal
    print("\n".join(answer_lines(answer, {})))
    if not answer.by_meaning:
        print(f"(not by meaning: {answer.reason})")
