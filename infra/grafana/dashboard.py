"""The Grafana dashboard, made in code: `python -m infra.grafana.dashboard` writes dashboards/darkroom.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("dashboards") / "darkroom.json"

_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS = 24  # the width of Grafana's grid
_HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a panel: PromQL and its legend."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` is a Grafana unit id; `meaning` tells the reader what to do with it."""

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _share(quantile: float, metric: str, by: str) -> str:
    """Return the PromQL of a quantile of a histogram."""
    return f"histogram_quantile({quantile}, sum by (le, {by}) (rate({metric}_bucket[$__rate_interval])))"


ROWS = (
    Row(
        "The promise",
        (
            Panel(
                "Images that ended", "By state. `failed` above zero: see the dead letters.", "cps",
                (Query("sum by (state) (rate(darkroom_images_total[$__rate_interval]))", "{{state}}"),),
            ),
            Panel(
                "From accepted to its end", "The promise to users.", "s",
                (
                    Query("histogram_quantile(0.5, sum by (le) (rate(darkroom_image_duration_seconds_bucket"
                          "[$__rate_interval])))", "half"),
                    Query("histogram_quantile(0.95, sum by (le) (rate(darkroom_image_duration_seconds_bucket"
                          "[$__rate_interval])))", "95 %"),
                ),
            ),
            Panel(
                "Events waiting", "Lag by stage: the scaling signal.", "short",
                (Query('sum by (stage) (darkroom_consumer_lag_events{stage=~"$stage"})', "{{stage}}"),),
            ),
        ),
    ),
    Row(
        "Stages",
        (
            Panel(
                "Events done", "By stage and how they ended.", "cps",
                (Query('sum by (stage, outcome) (rate(darkroom_events_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}} {{outcome}}"),),
            ),
            Panel(
                "Time in the stage, 95 %", "From taking an event to its outputs being delivered.", "s",
                (Query(_share(0.95, "darkroom_stage_duration_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "Own work, 95 %", "One try of the stage's own work: compare with the bench.", "s",
                (Query(_share(0.95, "darkroom_compute_duration_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "Age when taken, 95 %", "How long events waited. Grows with lag: scale the stage.", "s",
                (Query(_share(0.95, "darkroom_event_age_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "In flight", "Events taken and not yet done; at its bound the stage is saturated.", "short",
                (Query('sum by (stage) (darkroom_in_flight_events{stage=~"$stage"})', "{{stage}}"),),
            ),
            Panel(
                "Paused", "1 while the agent does not consume; `darkroom agents list` says why.", "short",
                (Query('max by (stage) (darkroom_agent_paused{stage=~"$stage"})', "{{stage}}"),),
            ),
            Panel(
                "Dependencies left alone", "2: it failed again and again, and is left alone; 1: it is being asked.",
                "short",
                (Query("max by (dependency) (darkroom_breaker_state)", "{{dependency}}"),
                 Query("sum by (dependency) (increase(darkroom_breaker_opened_total[$__rate_interval]))",
                       "{{dependency}}, opened")),
            ),
            Panel(
                "Batch size, mean", "Always 1 under load: raise batch_wait_s.", "short",
                (Query("sum by (stage) (rate(darkroom_batch_size_sum[$__rate_interval]))"
                       " / sum by (stage) (rate(darkroom_batch_size_count[$__rate_interval]))", "{{stage}}"),),
            ),
        ),
    ),
    Row(
        "The bulk lane",
        (
            Panel(
                "Waiting", "Events that wait for room in the pipeline.", "short",
                (Query("sum(darkroom_bulk_waiting_events)", "events"),),
            ),
            Panel(
                "In the pipeline", "Bulk images against their window; interactive ones, which go first.", "short",
                (
                    Query("sum(darkroom_bulk_in_flight_images)", "bulk"),
                    Query("sum(darkroom_bulk_window_images)", "window"),
                    Query("max(darkroom_interactive_in_flight_images)", "interactive"),
                ),
            ),
            Panel(
                "Let in", "By the topic they went to.", "cps",
                (Query("sum by (target) (rate(darkroom_bulk_forwarded_total[$__rate_interval]))", "{{target}}"),),
            ),
        ),
    ),
    Row(
        "What goes wrong",
        (
            Panel(
                "Tries again", "By where the next try happens: look at the dependency its log names.", "cps",
                (Query('sum by (stage, where) (rate(darkroom_retries_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}} {{where}}"),),
            ),
            Panel(
                "Dead letters", "Mend the cause, then replay.", "short",
                (Query('sum by (stage, code) (increase(darkroom_dead_letters_total{stage=~"$stage"}[$__range]))',
                       "{{stage}} {{code}}"),),
            ),
            Panel(
                "Images refused", "Normal; a jump names a bad sender.", "cps",
                (Query("sum by (code) (rate(darkroom_rejections_total[$__rate_interval]))", "{{code}}"),),
            ),
            Panel(
                "Models", "1: loaded and right; 0: its stage skips.", "short",
                (Query('min by (stage, model) (darkroom_model_available{stage=~"$stage"})', "{{stage}} {{model}}"),),
            ),
            Panel(
                "Event loop late by", "Above 1 s something blocks the loop.", "s",
                (Query("max by (process) (darkroom_event_loop_lag_seconds)", "{{process}}"),),
            ),
            Panel(
                "Deleted in mid-work", "Events dropped for that, and what was stored late and removed.", "cps",
                (
                    Query('sum by (stage) (rate(darkroom_fenced_events_total{stage=~"$stage"}[$__rate_interval]))',
                          "{{stage}} dropped"),
                    Query("sum by (kind) (rate(darkroom_late_removed_total[$__rate_interval]))", "late {{kind}}"),
                    Query("sum(rate(darkroom_erasures_finished_total[$__rate_interval]))", "erasures finished"),
                ),
            ),
            Panel(
                "Reprocessed", "By stage and what came of it: `said`, or why an image cannot run again.", "cps",
                (Query("sum by (stage, result) (rate(darkroom_reprocessed_images_total[$__rate_interval]))",
                       "{{stage}} {{result}}"),),
            ),
            Panel(
                "Results reused", "Found instead of computed: the work a replay did not repeat.", "cps",
                (Query('sum by (stage) (rate(darkroom_results_reused_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}}"),),
            ),
        ),
    ),
    Row(
        "What should have ended",
        (
            Panel(
                "Unfinished images", "By what they wait for and how that stands; `overdue` is sent again, `stuck` is "
                "yours: `darkroom reconcile --dry-run`.", "short",
                (Query('max by (stage, state) (darkroom_unfinished_images{stage=~"$stage"})', "{{stage}} {{state}}"),),
            ),
            Panel(
                "Oldest unfinished image", "Age since it was accepted.", "s",
                (Query("max(darkroom_oldest_unfinished_seconds)", "oldest"),),
            ),
            Panel(
                "Sent again", "Events that had been lost: look at that stage's log and at the broker.", "short",
                (Query('sum by (stage) (increase(darkroom_sent_again_total{stage=~"$stage"}[$__range]))',
                       "{{stage}}"),),
            ),
            Panel(
                "Objects missing", "Of completed images; the stage makes them again.", "short",
                (Query("sum by (stage) (increase(darkroom_missing_objects_total[$__range]))", "{{stage}}"),),
            ),
            Panel(
                "Last look over everything", "Too long ago: see the reconciler's log.", "s",
                (Query("time() - max(darkroom_reconciled_timestamp_seconds)", "ago"),),
            ),
        ),
    ),
    Row(
        "Vectors alone",
        (
            Panel(
                "Images", "Sent for their vector alone; `refused`: more came at once than may wait.", "cps",
                (Query("sum by (result) (rate(darkroom_feature_images_total[$__rate_interval]))", "{{result}}"),),
            ),
            Panel(
                "Waiting for their vector", "At DARKROOM_FEATURES__QUEUE further ones are refused.", "short",
                (Query("sum(darkroom_features_waiting_images)", "images"),),
            ),
            Panel(
                "Images per call of the model, mean", "Always 1 under load: raise DARKROOM_FEATURES__BATCH_WAIT_S.",
                "short",
                (Query("sum(rate(darkroom_feature_batch_images_sum[$__rate_interval]))"
                       " / sum(rate(darkroom_feature_batch_images_count[$__rate_interval]))", "images"),),
            ),
        ),
    ),
    Row(
        "HTTP and processes",
        (
            Panel(
                "Listeners", "Open streams of live progress; near `live.max_listeners`: add query processes.",
                "short", (Query("darkroom_live_listeners", "{{instance}}"),),
            ),
            Panel(
                "Streams cut", "Their readers were too slow; they may resume.", "short",
                (Query("sum by (instance) (increase(darkroom_live_cut_total[$__range]))", "{{instance}}"),),
            ),
            Panel(
                "Requests", "By app and status.", "reqps",
                (Query("sum by (app, status) (rate(darkroom_http_requests_total[$__rate_interval]))",
                       "{{app}} {{status}}"),),
            ),
            Panel(
                "Time to answer, 95 %", "Uploads slow: storage or Kafka is slow.", "s",
                (Query(_share(0.95, "darkroom_http_request_duration_seconds", "app, route"), "{{app}} {{route}}"),),
            ),
            Panel(
                "Bytes accepted", "For capacity planning.", "Bps",
                (Query("sum(rate(darkroom_upload_bytes_total[$__rate_interval]))", "uploads"),),
            ),
            Panel(
                "Callers", "By what became of them at the door. Many `invalid`: somebody tries keys.", "reqps",
                (Query("sum by (result) (rate(darkroom_authentications_total[$__rate_interval]))", "{{result}}"),),
            ),
            Panel(
                "Resident memory", "By process.", "bytes",
                (Query('process_resident_memory_bytes{job=~"darkroom-.*"}', "{{instance}}"),),
                width=12,
            ),
            Panel(
                "CPU", "Cores used, by process.", "short",
                (Query('rate(process_cpu_seconds_total{job=~"darkroom-.*"}[$__rate_interval])', "{{instance}}"),),
                width=12,
            ),
        ),
    ),
)  # fmt: skip


def expressions() -> Iterator[str]:
    """Return every PromQL expression of the dashboard, with Grafana's variables replaced by values."""
    for row in ROWS:
        for panel in row.panels:
            for query in panel.queries:
                yield (
                    query.expression.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$stage", ".*")
                )


def render() -> str:
    """Return the dashboard as Grafana reads it; the same code gives the same text."""
    dashboard = {
        "uid": "darkroom",
        "title": "Darkroom",
        "tags": ["darkroom"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_stage_variable()]},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _stage_variable() -> dict[str, object]:
    return {
        "name": "stage",
        "label": "Stage",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(darkroom_events_total, stage)", "refId": "stage"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, object]]:
    number, y = 0, 0
    for row in ROWS:
        number += 1
        yield {
            "id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
        }  # fmt: skip
        y, x = y + 1, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            number += 1
            yield _picture(number, panel, x, y)
            x += panel.width
        y += _HEIGHT


def _picture(number: int, panel: Panel, x: int, y: int) -> dict[str, object]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query.expression, "legendFormat": query.legend, "datasource": _SOURCE}
            for at, query in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(render())
