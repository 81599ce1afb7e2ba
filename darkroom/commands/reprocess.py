"""`darkroom reprocess`: run a stage again for the images a filter selects, and watch how far it is."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from darkroom.commands.admin_client import Token, call
from darkroom.commands.submit import DEFAULT_URL, Url
from schemas.http.admin import ReprocessList, ReprocessPlan, ReprocessView

JOBS = "/reprocess"
POLL_S = 1.0

Stage = Annotated[str | None, typer.Option(help="Of: sanitizer, resizer, ocr, detector, embedder.")]
Where = Annotated[
    str,
    typer.Option(
        help='Which images, for example "state=completed and version.ocr<2"; empty = all. See docs/reprocess.md.'
    ),
]


def reprocess(
    stage: Stage = None,
    where: Where = "",
    per_second: Annotated[float, typer.Option(help="Images a second, at most.")] = 20.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which images it would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until all are on their way.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show every rerun.")] = False,
    cancel: Annotated[str | None, typer.Option(help="Stop the rerun of this id.")] = None,
    token: Token = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Run one stage again for a selection of images. What is unchanged costs no computation."""
    if list_:
        Console().print(jobs_table(call(url, "GET", JOBS, ReprocessList, token=token)))
        return
    if cancel is not None:
        print(sentence(call(url, "POST", f"{JOBS}/{cancel}/cancel", ReprocessView, token=token)))
        return
    if stage is None:
        raise typer.BadParameter("which stage? --stage ocr, for instance")
    asked = {"stage": stage, "where": where, "per_second": per_second}
    if dry_run or not yes:
        print(
            plan_text(call(url, "POST", JOBS, ReprocessPlan, token=token, json={**asked, "dry_run": True}), per_second)
        )
        if not dry_run:
            print("Nothing was done: add --yes to do it.")
        return
    job = call(url, "POST", JOBS, ReprocessView, token=token, json=asked)
    if not no_wait:
        job = _watch(job, url, token)
    print(sentence(job))
    raise typer.Exit(1 if job.state == "failed" else 0)


def _watch(job: ReprocessView, url: str, token: str | None) -> ReprocessView:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(job.stage, total=job.total, pace="")
        try:
            while job.state == "running":
                time.sleep(POLL_S)
                job = call(url, "GET", f"{JOBS}/{job.id}", ReprocessView, token=token)
                progress.update(bar, total=job.total, completed=job.done + job.skipped, pace=pace(job))
        except KeyboardInterrupt:
            print(f"It goes on without you: `darkroom reprocess --list` shows it, `--cancel {job.id}` stops it.")
    return job


def pace(job: ReprocessView) -> str:
    """Return how fast a rerun is and when all will be on their way, as far as that is known."""
    if job.total is None:
        return "counting"
    left = f", {duration(job.eta_s)} to go" if job.eta_s is not None else ""
    return f"{job.rate:.1f}/s{left}"


def sentence(job: ReprocessView) -> str:
    """Return where a rerun stands, for a person."""
    of = f" of {job.total}" if job.total is not None else ""
    said = f"{job.id} is {job.state}: {job.done}{of} images are on their way to {job.stage}"
    if job.reasons:
        said += "; skipped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(job.reasons.items()))
    return said + (f" ({job.error})" if job.error else "")


def plan_text(plan: ReprocessPlan, per_second: float) -> str:
    """Return what a rerun would be, for a person."""
    count = f"{plan.images}" if plan.counted_all else f"more than {plan.images}"
    said = f"{plan.stage} would run again for {count} image{'' if plan.images == 1 else 's'}"
    if not plan.images:
        return said
    names = ", ".join(plan.first) + (", …" if plan.images > len(plan.first) else "")
    return f"{said}, in {duration(plan.images / per_second)} or more: {names}"


def jobs_table(found: ReprocessList) -> Table:
    """Return every rerun as a table."""
    table = Table("rerun", "where", "state", "images", "skipped", "pace", "asked for", box=SIMPLE_HEAD)
    for job in found.jobs:
        images = f"{job.done}" + (f" of {job.total}" if job.total is not None else "")
        running = pace(job) if job.state == "running" else job.error or ""
        table.add_row(job.id, job.where or "(all)", job.state, images, str(job.skipped), running, job.started_at)
    return table


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
