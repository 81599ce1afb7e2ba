"""`darkroom submit` and `darkroom search`: the HTTP client on the command line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from darkroom.commands.tables import Shown, answer_lines, reason_lines, results_table, stage_progress
from gateway.client import AsyncDarkroom, Darkroom, Refused, Unreachable
from schemas.http.jobs import JobStatus
from schemas.values import ImageState, Lane

Url = Annotated[str, typer.Option("--url", help="Where Darkroom is.", envvar="DARKROOM_URL")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", help="A JWT or an API key.", envvar=["DARKROOM_TOKEN", "DARKROOM_API_KEY"], show_default=False
    ),
]
DEFAULT_URL = "http://127.0.0.1:8080"
AT_ONCE = 8
MANY = 20  # images sent at once that are a bulk import, unless somebody says otherwise
POLL_S = 0.5
FULL = frozenset({"rate-limited", "quota-exceeded"})  # what refuses one image refuses those after it
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".heic", ".heif"}


def sources_of(given: Sequence[str]) -> list[str]:
    """Return files and URLs; a folder stands for the images in it. Raises FileNotFoundError."""
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
    """Return the lane images are sent in: the one asked for, or by how many they are."""
    return Lane.BULK if (count > MANY if bulk is None else bulk) else Lane.INTERACTIVE


async def send_all(
    client: AsyncDarkroom,
    sources: Sequence[str],
    *,
    bucket: str,
    patience_s: float,
    moved: Callable[[str, int, int], None],
    lane: Lane = Lane.INTERACTIVE,
) -> tuple[list[Shown], dict[str, str]]:
    """Send, then wait until every image ended; return results and refusals by source.

    `moved` hears of progress: a line, images ended, images in all. Once a limit or quota is reached nothing more is
    sent. Raises TimeoutError.
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
                submitted = await client.submit(source, bucket=bucket, lane=lane)
            except Refused as refusal:
                refused[source] = str(refusal)
                if refusal.code in FULL:
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
    """Say what was refused and why; what was refused for want of room, in one line with what to do."""
    full = [source for source, reason in refused.items() if any(code in reason for code in FULL)]
    lines = [f"refused: {source}: {reason}" for source, reason in refused.items() if source not in full]
    if full:
        lines.append(f"not sent: {len(full)} images, the first of them {full[0]}: {refused[full[0]]}")
        lines.append("   limits and quotas are settings: see DARKROOM_LIMITS__UPLOADS in docs/operations.md")
    return lines


def submit(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, URLs.")],
    bucket: Annotated[str, typer.Option(help="The bucket the images are filed under.")] = "default",
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for all of them.")] = 600.0,
    bulk: Annotated[bool | None, typer.Option(help=f"Behind whoever waits; so anyway, if over {MANY}.")] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Send images, wait until each has ended, show what came out; exit 1 if one failed or was refused."""
    try:
        wanted = sources_of(sources)
    except FileNotFoundError as error:
        raise SystemExit(f"there is no file or folder {error}") from error
    lane = lane_of(len(wanted), bulk)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("sending", total=len(wanted))

        async def run() -> tuple[list[Shown], dict[str, str]]:
            def moved(line: str, done: int, total: int) -> None:
                progress.update(bar, description=line, completed=done, total=total)

            async with AsyncDarkroom(url, token=token) as client:
                return await send_all(client, wanted, bucket=bucket, patience_s=patience_s, moved=moved, lane=lane)

        try:
            shown, refused = asyncio.run(run())
        except Unreachable as error:
            raise SystemExit(f"Darkroom at {url} does not answer: {error}. Is it up? `make up`") from error
        except TimeoutError as error:
            raise SystemExit(f"not all images ended within {patience_s:.0f} s") from error
    Console().print(results_table(shown))
    print("\n".join(reason_lines(shown)))
    print("\n".join(refusal_lines(refused)))
    bad = refused or any(row.result.status is not ImageState.COMPLETED for row in shown)
    raise typer.Exit(1 if bad else 0)


def search(
    words: Annotated[list[str], typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option(help="Most answers.")] = 10,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Search images by meaning (when CLIP is there), by their text, and by what is on them."""
    try:
        with Darkroom(url, token=token) as client:
            answer = client.search(" ".join(words), limit=limit)
    except Unreachable as error:
        raise SystemExit(f"Darkroom at {url} does not answer: {error}. Is it up? `make up`") from error
    except Refused as refusal:
        raise SystemExit(str(refusal)) from refusal
    print("\n".join(answer_lines(answer, {})))
    if not answer.by_meaning:
        print(f"(not by meaning: {answer.reason})")
