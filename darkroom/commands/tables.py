"""Terminal output of results: progress per stage, the results table, search results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from schemas.http.jobs import JobResult, JobStatus
from schemas.http.search import SearchAnswer
from schemas.values import REQUIRED_STAGES, StageState

TEXT_SHOWN = 40
_ENDED = {StageState.DONE, StageState.SKIPPED, StageState.REJECTED, StageState.FAILED}


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the results table."""

    name: str
    result: JobResult
    seconds: float


def stage_progress(statuses: Iterable[JobStatus], total: int) -> str:
    """Return one line with the number of images past each stage."""
    counts: Counter[str] = Counter()
    for status in statuses:
        for stage, view in status.stages.items():
            counts[stage] += view.state in _ENDED
    return "  ".join(f"{stage} {counts[stage]}/{total}" for stage in REQUIRED_STAGES)


def results_table(shown: Sequence[Shown]) -> Table:
    """Return the results as a table."""
    table = Table("image", "state", "variants", "objects", "text", "skipped", "seconds", box=SIMPLE_HEAD)
    for row in shown:
        result = row.result
        sizes = result.metadata.variants.values()
        largest = max(sizes, key=lambda size: size.width, default=None)
        variants = f"{len(sizes)}, up to {largest.width}×{largest.height}" if largest else ""
        labels = Counter(found.label for found in result.objects or ())
        objects = ", ".join(f"{count} {label}" if count > 1 else label for label, count in labels.most_common())
        text = " ".join((result.text.content if result.text else "").split())
        skipped = ", ".join(name for name, stage in result.stages.items() if stage.state is StageState.SKIPPED)
        cut = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"
        table.add_row(row.name, result.status.value, variants, objects, cut, skipped, f"{row.seconds:.1f}")
    return table


def reason_lines(shown: Sequence[Shown]) -> list[str]:
    """Return one line per rejected or failed image."""
    return [
        f"{row.name}: {row.result.error.code}: {row.result.error.message}"
        for row in shown
        if row.result.error is not None
    ]


def answer_lines(answer: SearchAnswer, names: Mapping[str, str]) -> list[str]:
    """Return search results as lines; an image without a name is shown by its id."""
    lines = [f"“{answer.query}”"]
    lines += [
        f"   {item.score:.2f}  {names.get(item.image_id, item.image_id)}  by {', '.join(item.matched)}"
        for item in answer.items[:5]
    ]
    return lines if answer.items else [*lines, "   nothing found"]
