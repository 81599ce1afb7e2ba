"""`darkroom reconcile`: requests a reconciliation of all images, and prints the report."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from darkroom.commands.admin_client import Token, call
from darkroom.commands.submit import DEFAULT_URL, Url
from schemas.http.reconciliation import ReconcileReport, Standing

EXIT_OVERDUE = 3
PATIENCE_S = 600.0  # it checks the objects of every image


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; report what would be done.")] = False,
    token: Token = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Find overdue images and send their events again. Exits 3 if there are any."""
    asked = {"dry_run": str(dry_run).lower()}
    report = call(url, "POST", "/reconcile", ReconcileReport, token=token, params=asked, timeout_s=PATIENCE_S)
    for shown in tables(report):
        Console().print(shown)
    raise typer.Exit(EXIT_OVERDUE if report.overdue_count else 0)


def tables(report: ReconcileReport) -> list[Table | str]:
    """Return a report as tables and lines."""
    shown: list[Table | str] = [_counted("Images", report.images)]
    if report.unfinished:
        stages = Table("waits for", *(standing.value for standing in Standing), box=SIMPLE_HEAD)
        for stage, found in report.unfinished.items():
            stages.add_row(stage, *(str(found.get(standing, 0)) for standing in Standing))
        shown.append(stages)
    if report.oldest is not None:
        oldest = report.oldest
        shown.append(f"Oldest unfinished: {oldest.image_id}, {_age(oldest.age_s)}, waits for {oldest.stage}")
    if report.overdue:
        shown.append(_overdue_table(report))
    if report.overdue_count > len(report.overdue):
        shown.append(f"… and {report.overdue_count - len(report.overdue)} more")
    if report.missing_count:
        listed = "\n".join(f"  {key}" for key in report.missing_objects)
        shown.append(f"Missing objects: {report.missing_count}\n{listed}")
    swept = {name: count for name, count in report.swept.items() if count}
    shown.append(_counted("The janitor would find" if report.dry_run else "The janitor found", swept))
    if not report.overdue_count:
        shown.append("Nothing is overdue")
    return shown


def _overdue_table(report: ReconcileReport) -> Table:
    table = Table("image", "waits for", "why", "since", "standing", "tries", "", box=SIMPLE_HEAD)
    done = "would be sent again" if report.dry_run else "sent again"
    for item in report.overdue:
        act = done if item.sent else ""
        run = f"{item.image_id}.{item.generation}"
        table.add_row(run, item.stage, item.reason, _age(item.age_s), item.standing.value, str(item.tries), act)
    return table


def _counted(what: str, counts: dict[str, int]) -> str:
    return f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'}"


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
