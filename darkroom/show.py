"""How results are shown on a terminal: the progress per stage, the table of results, search answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.table import Table

from schemas.http_api import JobResult, JobStatus, SearchAnswer
from schemas.values import REQUIRED_STAGES, StageState

TEXT_SHOWN = 40
_ENDED = {StageState.DONE, StageState.SKIPPED, StageState.REJECTED, StageState.FAILED}


@dataclass(frozen=True, slots=True)
class Shown:
    """One image as the table shows it."""

    name: str
    result: JobResult
    seconds: float


def stage_progress(statuses: Iterable[JobStatus], total: int) -> str:
    """Return one line: how many images have passed each stage."""
    counts: Counter[str] = Counter()
    for status in statuses:
        for stage, view in status.stages.items():
            counts[stage] += view.state in _ENDED
    return "  ".join(f"{stage} {counts[stage]}/{total}" for stage in REQUIRED_STAGES)


def results_table(shown: Iterable[Shown]) -> Table:
    """Return the table of results."""
    table = Table("image", "state", "variants", "objects", "text", "skipped", "seconds")
    for row in shown:
        result = row.result
        variants = ", ".join(f"{n} {v.width}×{v.height}" for n, v in result.metadata.variants.items())
        labels = Counter(found.label for found in result.objects or ())
        objects = ", ".join(f"{count} {label}" if count > 1 else label for label, count in labels.most_common())
        text = " ".join((result.text.content if result.text else "").split())
        skipped = ", ".join(name for name, stage in result.stages.items() if stage.state is StageState.SKIPPED)
        state = result.status.value
        if result.error is not None:
            state += f" ({result.error.code}: {result.error.message})"
        cut = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"
        table.add_row(row.name, state, variants, objects, cut, skipped, f"{row.seconds:.1f}")
    return table


def answer_lines(answer: SearchAnswer, names: Mapping[str, str]) -> list[str]:
    """Return a search's answer as lines."""
    lines = [f"“{answer.query}”" + ("" if answer.by_meaning else f"   (not by meaning: {answer.reason})")]
    lines += [
        f"   {item.score:.2f}  {names.get(item.image_id, item.image_id)}  by {', '.join(item.matched)}"
        for item in answer.items[:5]
    ]
    return lines if answer.items else [*lines, "   nothing found"]
