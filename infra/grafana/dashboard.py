"""The Grafana dashboard, generated: `python -m infra.grafana.dashboard` writes dashboards/darkroom.json."""

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
    """A query of a panel: PromQL and its legend."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. `unit` is a Grafana unit id; `meaning` is the description with the action to take."""

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels."""

    title: str
    panels: tuple[Panel, ...]


def _share(quantile: float, metric: str, by: str) -> str:
    """Return the PromQL of a quantile of a histogram."""
    return f"histogram_quantile({quantile}, sum by (le, {by}) (rate({metric}_bucket[$__rate_interval])))"


ROWS = (
    Row(
        "Service level",
        (
            Panel(
                "Ended images", "By state. `failed` above zero: see the dead letters.", "cps",
                (Query("sum by (state) (rate(darkroom_images_total[$__rate_interval]))", "{{state}}"),),
            ),
            Panel(
                "Time from acceptance to outcome", "The service level of users.", "s",
                (
                    Query("histogram_quantile(0.5, sum by (le) (rate(darkroom_image_duration_seconds_bucket"
                          "[$__rate_interval])))", "median"),
                    Query("histogram_quantile(0.95, sum by (le) (rate(darkroom_image_duration_seconds_bucket"
                          "[$__rate_interval])))", "95 %"),
                ),
            ),
            Panel(
                "Consumer lag", "Events waiting, by stage: the scaling signal.", "short",
                (Query('sum by (stage) (darkroom_consumer_lag_events{stage=~"$stage"})', "{{stage}}"),),
            ),
        ),
    ),
    Row(
        "Stages",
        (
            Panel(
                "Processed events", "By stage and outcome.", "cps",
                (Query('sum by (stage, outcome) (rate(darkroom_events_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}} {{outcome}}"),),
            ),
            Panel(
                "Time in the stage, 95 %", "From consuming an event to the delivery of its outputs.", "s",
                (Query(_share(0.95, "darkroom_stage_duration_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "Computation time, 95 %", "One attempt of the stage's work: compare with the benchmarks.", "s",
                (Query(_share(0.95, "darkroom_compute_duration_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "Event age when consumed, 95 %", "Grows with lag: scale the stage.", "s",
                (Query(_share(0.95, "darkroom_event_age_seconds", "stage"), "{{stage}}"),),
            ),
            Panel(
                "In flight", "Events being processed; at the limit the stage is saturated.", "short",
                (Query('sum by (stage) (darkroom_in_flight_events{stage=~"$stage"})', "{{stage}}"),),
            ),
            Panel(
                "Paused", "1 while the agent is paused; `darkroom agents list` shows the reason.", "short",
                (Query('max by (stage) (darkroom_agent_paused{stage=~"$stage"})', "{{stage}}"),),
            ),
            Panel(
                "Circuit breakers", "2: open, calls are rejected; 1: half-open, one probe is under way.",
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
                "Waiting", "Events not yet admitted to the pipeline.", "short",
                (Query("sum(darkroom_bulk_waiting_events)", "events"),),
            ),
            Panel(
                "In the pipeline", "Bulk images and their window; interactive images, which have priority.", "short",
                (
                    Query("sum(darkroom_bulk_in_flight_images)", "bulk"),
                    Query("sum(darkroom_bulk_window_images)", "window"),
                    Query("max(darkroom_interactive_in_flight_images)", "interactive"),
                ),
            ),
            Panel(
                "Admitted", "By target topic.", "cps",
                (Query("sum by (target) (rate(darkroom_bulk_forwarded_total[$__rate_interval]))", "{{target}}"),),
            ),
        ),
    ),
    Row(
        "Failures",
        (
            Panel(
                "Retries", "By place of the next attempt; the log names the dependency.", "cps",
                (Query('sum by (stage, where) (rate(darkroom_retries_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}} {{where}}"),),
            ),
            Panel(
                "Dead letters", "Fix the cause, then replay.", "short",
                (Query('sum by (stage, code) (increase(darkroom_dead_letters_total{stage=~"$stage"}[$__range]))',
                       "{{stage}} {{code}}"),),
            ),
            Panel(
                "Rejected images", "Normal; a sudden rise points to a bad sender.", "cps",
                (Query("sum by (code) (rate(darkroom_rejections_total[$__rate_interval]))", "{{code}}"),),
            ),
            Panel(
                "Models", "1: loaded and verified; 0: its stage skips.", "short",
                (Query('min by (stage, model) (darkroom_model_available{stage=~"$stage"})', "{{stage}} {{model}}"),),
            ),
            Panel(
                "Event loop lag", "Above 1 s a call blocks the loop.", "s",
                (Query("max by (process) (darkroom_event_loop_lag_seconds)", "{{process}}"),),
            ),
            Panel(
                "Deleted during processing", "Events dropped, and objects stored late and removed.", "cps",
                (
                    Query('sum by (stage) (rate(darkroom_fenced_events_total{stage=~"$stage"}[$__rate_interval]))',
                          "{{stage}} dropped"),
                    Query("sum by (kind) (rate(darkroom_late_removed_total[$__rate_interval]))", "late {{kind}}"),
                    Query("sum(rate(darkroom_erasures_finished_total[$__rate_interval]))", "erasures finished"),
                ),
            ),
            Panel(
                "Reprocessed", "By stage and result: `said` if sent, else the reason for the skip.", "cps",
                (Query("sum by (stage, result) (rate(darkroom_reprocessed_images_total[$__rate_interval]))",
                       "{{stage}} {{result}}"),),
            ),
            Panel(
                "Results reused", "Results found instead of computed again.", "cps",
                (Query('sum by (stage) (rate(darkroom_results_reused_total{stage=~"$stage"}[$__rate_interval]))',
                       "{{stage}}"),),
            ),
        ),
    ),
    Row(
        "Reconciliation",
        (
            Panel(
                "Unfinished images", "By the stage they wait for; `overdue` is sent again, `stuck` needs an operator: "
                "`darkroom reconcile --dry-run`.", "short",
                (Query('max by (stage, state) (darkroom_unfinished_images{stage=~"$stage"})', "{{stage}} {{state}}"),),
            ),
            Panel(
                "Oldest unfinished image", "Time since its acceptance.", "s",
                (Query("max(darkroom_oldest_unfinished_seconds)", "oldest"),),
            ),
            Panel(
                "Sent again", "Lost events: see the stage's log and the broker.", "short",
                (Query('sum by (stage) (increase(darkroom_sent_again_total{stage=~"$stage"}[$__range]))',
                       "{{stage}}"),),
            ),
            Panel(
                "Objects missing", "Of completed images; the stage creates them again.", "short",
                (Query("sum by (stage) (increase(darkroom_missing_objects_total[$__range]))", "{{stage}}"),),
            ),
            Panel(
                "Time since the last full reconciliation", "If it grows, see the reconciler's log.", "s",
                (Query("time() - max(darkroom_reconciled_timestamp_seconds)", "ago"),),
            ),
        ),
    ),
    Row(
        "Feature API",
        (
            Panel(
                "Images", "Images sent for their vector; `refused`: the queue was full.", "cps",
                (Query("sum by (result) (rate(darkroom_feature_images_total[$__rate_interval]))", "{{result}}"),),
            ),
            Panel(
                "Queued", "At DARKROOM_FEATURES__QUEUE further images are rejected.", "short",
                (Query("sum(darkroom_features_waiting_images)", "images"),),
            ),
            Panel(
                "Images per model call, mean", "Always 1 under load: raise DARKROOM_FEATURES__BATCH_WAIT_S.",
                "short",
                (Query("sum(rate(darkroom_feature_batch_images_sum[$__rate_interval]))"
                       " / sum(rate(darkroom_feature_batch_images_count[$__rate_interval]))", "images"),),
            ),
        ),
    ),
    Row(
        "Fetches",
        (
            Panel(
                "Answers", "By URL; `stored`: without a request to the source.", "cps",
                (Query("sum by (answer) (rate(darkroom_fetches_total[$__rate_interval]))", "{{answer}}"),),
            ),
            Panel(
                "Bytes", "Fetched from sources, and saved by stored answers.", "Bps",
                (Query("sum by (kind) (rate(darkroom_fetch_bytes_total[$__rate_interval]))", "{{kind}}"),),
            ),
            Panel(
                "Requests to sources", "By source with rules of its own; what a source bills.", "reqps",
                (Query("sum by (source) (rate(darkroom_source_requests_total[$__rate_interval]))", "{{source}}"),),
            ),
        ),
    ),
    Row(
        "HTTP and processes",
        (
            Panel(
                "Open event streams", "Live progress; near `live.max_listeners`: add query processes.",
                "short", (Query("darkroom_live_listeners", "{{instance}}"),),
            ),
            Panel(
                "Closed event streams", "Their clients were too slow; they can resume.", "short",
                (Query("sum by (instance) (increase(darkroom_live_cut_total[$__range]))", "{{instance}}"),),
            ),
            Panel(
                "Requests", "By app and status.", "reqps",
                (Query("sum by (app, status) (rate(darkroom_http_requests_total[$__rate_interval]))",
                       "{{app}} {{status}}"),),
            ),
            Panel(
                "Response time, 95 %", "Slow uploads: the object store or Kafka is slow.", "s",
                (Query(_share(0.95, "darkroom_http_request_duration_seconds", "app, route"), "{{app}} {{route}}"),),
            ),
            Panel(
                "Bytes accepted", "For capacity planning.", "Bps",
                (Query("sum(rate(darkroom_upload_bytes_total[$__rate_interval]))", "uploads"),),
            ),
            Panel(
                "Authentications", "By result. Many `invalid`: possibly an attack on keys.", "reqps",
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
    """Return the dashboard as JSON, deterministically."""
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
