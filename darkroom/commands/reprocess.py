"""`darkroom reprocess`: runs a stage again for the images that a filter selects, and shows the progress."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from darkroom.commands.admin_client import Token, call
from darkroom.commands.profile_option import EXAMPLE, read_profile
from darkroom.commands.submit import DEFAULT_URL, Url
from schemas.http.admin import ReprocessList, ReprocessPlan, ReprocessView, RerunProfile

JOBS = "/reprocess"
POLL_S = 1.0

Stage = Annotated[str | None, typer.Option(help="One of: sanitizer, resizer, ocr, detector, embedder.")]
Where = Annotated[
    str,
    typer.Option(
        help='A filter, for example "state=completed and version.ocr<2"; default: all images. See docs/reprocess.md.'
    ),
]

Profile = Annotated[
    str | None,
    typer.Option(
        help=f"Parameters for this rerun, and stages to add, as JSON, for example {EXAMPLE}. See docs/reprocess.md."
    ),
]


def reprocess(
    *,
    stage: Stage = None,
    where: Where = "",
    per_second: Annotated[float, typer.Option(help="Most images per second.")] = 20.0,
    profile: Profile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the selected images.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Start it; without it, a dry run.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until all events are sent.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List all reprocessing jobs.")] = False,
    cancel: Annotated[str | None, typer.Option(help="Cancel the job with this id.")] = None,
    token: Token = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Run one stage again for the selected images. Unchanged work reuses the stored result."""
    if list_:
        Console().print(jobs_table(call(url, "GET", JOBS, ReprocessList, token=token)))
        return
    if cancel is not None:
        print(sentence(call(url, "POST", f"{JOBS}/{cancel}/cancel", ReprocessView, token=token)))
        return
    if stage is None:
        raise typer.BadParameter("--stage is required, for example --stage ocr")
    asked: dict[str, Any] = {"stage": stage, "where": where, "per_second": per_second}
    if (wanted := read_profile(profile, RerunProfile)) is not None:
        asked["profile"] = wanted.model_dump(mode="json")
    if dry_run or not yes:
        print(
            plan_text(call(url, "POST", JOBS, ReprocessPlan, token=token, json={**asked, "dry_run": True}), per_second)
        )
        if not dry_run:
            print("Dry run: nothing was changed. Add --yes to start it.")
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
            print(f"The job continues. `darkroom reprocess --list` shows it, `--cancel {job.id}` cancels it.")
    return job


def pace(job: ReprocessView) -> str:
    """Return the rate of a job and its remaining time, as far as known."""
    if job.total is None:
        return "counting"
    left = f", {duration(job.eta_s)} to go" if job.eta_s is not None else ""
    return f"{job.rate:.1f}/s{left}"


def sentence(job: ReprocessView) -> str:
    """Return the progress of a job in one sentence."""
    of = f" of {job.total}" if job.total is not None else ""
    text = f"{job.id} is {job.state}: {job.done}{of} images sent to {job.stage}"
    if job.reasons:
        text += "; skipped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(job.reasons.items()))
    return text + (f" ({job.error})" if job.error else "")


def plan_text(plan: ReprocessPlan, per_second: float) -> str:
    """Return the result of a dry run in one sentence."""
    count = f"{plan.images}" if plan.counted_all else f"more than {plan.images}"
    text = f"{plan.stage} would run again for {count} image{'' if plan.images == 1 else 's'}"
    if not plan.images:
        return text
    names = ", ".join(plan.first) + (", …" if plan.images > len(plan.first) else "")
    return f"{text}, in {duration(plan.images / per_second)} or more: {names}"


def jobs_table(found: ReprocessList) -> Table:
    """Return all jobs as a table."""
    table = Table("job", "where", "profile", "state", "images", "skipped", "rate", "started", box=SIMPLE_HEAD)
    for job in found.jobs:
        images = f"{job.done}" + (f" of {job.total}" if job.total is not None else "")
        running = pace(job) if job.state == "running" else job.error or ""
        asked = json.dumps(job.profile.model_dump(mode="json")) if job.profile is not None else ""
        table.add_row(job.id, job.where or "(all)", asked, job.state, images, str(job.skipped), running, job.started_at)
    return table


def duration(seconds: float) -> str:
    """Return a duration in h, min and s."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
