"""Every metric, each with its meaning and what to do about it. Dashboards and alerts are tested against this list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BATCH = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Advice:
    """Meaning of a metric for operators, and the action it calls for."""

    name: str
    meaning: str
    action: str


ADVICE: list[Advice] = []


def _doc(name: str, meaning: str, action: str) -> tuple[str, str]:
    ADVICE.append(Advice(name, meaning, action))
    return name, meaning


EVENTS = Counter(
    *_doc(
        "darkroom_events_total",
        "Events finished by a stage, by how they ended (emitted, skipped, rejected, retried, postponed, dead, "
        "ignored, gone).",
        "A rising share of `retried` names a slow dependency; of `dead`, a bug: see the dead letters.",
    ),
    ["stage", "outcome"],
)
STAGE_SECONDS = Histogram(
    *_doc(
        "darkroom_stage_duration_seconds",
        "Time from taking an event to its outputs being delivered.",
        "Scale the stage, or find which part of it grew.",
    ),
    ["stage"],
    buckets=_SECONDS,
)
COMPUTE_SECONDS = Histogram(
    *_doc("darkroom_compute_duration_seconds", "Time of the stage's own work, one try.", "Compare with the bench."),
    ["stage"],
    buckets=_SECONDS,
)
EVENT_AGE_SECONDS = Histogram(
    *_doc(
        "darkroom_event_age_seconds",
        "Age of an event when its stage starts it: the time it waited.",
        "Grows with lag: scale the stage.",
    ),
    ["stage"],
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram(
    *_doc("darkroom_batch_size", "Events per call of a batched stage.", "Always 1 under load: raise batch_wait_s."),
    ["stage"],
    buckets=_BATCH,
)
IN_FLIGHT = Gauge(
    *_doc("darkroom_in_flight_events", "Events in progress.", "At its bound: the stage is saturated."),
    ["stage"],
)
LAG = Gauge(
    *_doc(
        "darkroom_consumer_lag_events",
        "Uncommitted events on the topic's partitions this worker owns.",
        "The scaling signal; if it grows while replicas are at their maximum, add partitions or capacity.",
    ),
    ["stage", "topic", "partition"],
)
RESULTS_REUSED = Counter(
    *_doc(
        "darkroom_results_reused_total",
        "Stored results reused instead of computed.",
        "None during a replay: a stage version or a parameter changed.",
    ),
    ["stage"],
)
RETRIES = Counter(
    *_doc(
        "darkroom_retries_total",
        "Retryable failures, by where the next try happens (in-place, or the delay's name).",
        "The log names the dependency that failed.",
    ),
    ["stage", "where"],
)
DEAD_LETTERS = Counter(
    *_doc(
        "darkroom_dead_letters_total",
        "Dead-lettered events, by stable code.",
        "`darkroom dead-letters list`; fix the cause, then replay.",
    ),
    ["stage", "code"],
)
REJECTIONS = Counter(
    *_doc(
        "darkroom_rejections_total", "Images rejected, by stable code.", "Normal; a sudden rise names a faulty sender."
    ),
    ["stage", "code"],
)
MODEL_AVAILABLE = Gauge(
    *_doc(
        "darkroom_model_available",
        "1 if the stage's model is loaded and passed its golden image, 0 if the stage skips.",
        "0: `darkroom models verify` names the reason.",
    ),
    ["stage", "model"],
)
BULK_WAITING = Gauge(
    *_doc(
        "darkroom_bulk_waiting_events",
        "Events of the bulk lane waiting for admission to the pipeline, on the partitions this router owns.",
        "It shrinks at the pipeline's spare rate: if too slowly, scale the stage with the oldest events.",
    )
)
BULK_IN_FLIGHT = Gauge(
    *_doc(
        "darkroom_bulk_in_flight_images",
        "Images of the bulk lane in the pipeline.",
        "Well below the window while events wait: interactive images use the whole capacity.",
    )
)
BULK_WINDOW = Gauge(
    *_doc(
        "darkroom_bulk_window_images",
        "Images of the bulk lane that may be in the pipeline concurrently, as measured by the router.",
        "Stays at 2 without interactive images: the pipeline is slow per image; see the age of events.",
    )
)
BULK_FORWARDED = Counter(
    *_doc(
        "darkroom_bulk_forwarded_total",
        "Events admitted from the bulk lane to the pipeline, by target topic.",
        "None while events wait: see `scheduler` in the router's health.",
    ),
    ["target"],
)
INTERACTIVE_IN_FLIGHT = Gauge(
    *_doc(
        "darkroom_interactive_in_flight_images",
        "Interactive images in the pipeline; each counts for a minute at most.",
        "Never zero: only one bulk image every few seconds is admitted; scale the slowest stage.",
    )
)
PAUSED = Gauge(
    *_doc(
        "darkroom_agent_paused",
        "1 while the agent is paused: by itself at the dead-letter limit, or by an operator.",
        "`darkroom agents list` names the reason; fix the cause, then `darkroom agents resume`.",
    ),
    ["stage"],
)
BREAKER_STATE = Gauge(
    *_doc(
        "darkroom_breaker_state",
        "State of a dependency's circuit breaker: 0 closed, 1 half-open (probing), 2 open.",
        "2: the dependency failed several times in a row; /health/ready and the log name its last error.",
    ),
    ["dependency"],
)
BREAKER_OPENED = Counter(
    *_doc(
        "darkroom_breaker_opened_total",
        "Times a circuit breaker opened because its dependency failed several times in a row.",
        "Many short openings: the dependency is slow or overloaded rather than unavailable.",
    ),
    ["dependency"],
)
WATCHDOG_LAG = Gauge(
    *_doc("darkroom_event_loop_lag_seconds", "Delay of the event loop.", "Above 1: a call blocks the loop."),
    ["process"],
)
AUTHENTICATIONS = Counter(
    *_doc(
        "darkroom_authentications_total",
        "Authentications at the gateways, by result (accepted, anonymous, missing, invalid, expired, ambiguous, "
        "foreign, insufficient-scope).",
        "Many `invalid`: guessed keys, or a client that uses a rotated key; the log names the address.",
    ),
    ["result"],
)
HTTP_REQUESTS = Counter(
    *_doc("darkroom_http_requests_total", "HTTP requests by route and status.", "5xx: see the log by trace id."),
    ["app", "route", "method", "status"],
)
HTTP_SECONDS = Histogram(
    *_doc("darkroom_http_request_duration_seconds", "Time to answer.", "Slow uploads: storage or Kafka is slow."),
    ["app", "route"],
    buckets=_SECONDS,
)
UPLOAD_BYTES = Counter(
    *_doc("darkroom_upload_bytes_total", "Bytes accepted by the ingest gateway.", "For capacity planning."),
    ["app"],
)
FENCED = Counter(
    *_doc(
        "darkroom_fenced_events_total",
        "Events dropped because their image is deleted, before or after processing.",
        "Normal after deletions; many at once: deleted images are replayed or reprocessed.",
    ),
    ["stage"],
)
LATE_REMOVED = Counter(
    *_doc(
        "darkroom_late_removed_total",
        "Objects stored for an image after its deletion and then removed, by kind (object, original, result).",
        "A few are normal; many: workers finish long after their deadline, see the watchdog.",
    ),
    ["kind"],
)
ERASURES_FINISHED = Counter(
    *_doc(
        "darkroom_erasures_finished_total",
        "Deletions after which no late write is possible.",
        "Constant while images are deleted: the reconciler, which runs the janitor, is not running.",
    )
)
REPROCESSED = Counter(
    *_doc(
        "darkroom_reprocessed_images_total",
        "Images visited by `darkroom reprocess`, by stage and result: `said` (event sent), or why it was skipped.",
        "`original-gone` or `no-master`: these images cannot be recomputed; upload them again.",
    ),
    ["stage", "result"],
)
IMAGES = Counter(
    *_doc(
        "darkroom_images_total",
        "Images that reached a final state, by state.",
        "`failed` above zero: see the dead letters.",
    ),
    ["state"],
)
IMAGE_SECONDS = Histogram(
    *_doc(
        "darkroom_image_duration_seconds",
        "Time from an image's acceptance to its final state.",
        "The latency users see; find the slow stage in darkroom_event_age_seconds.",
    ),
    ["state"],
    buckets=_SECONDS,
)

UNFINISHED = Gauge(
    *_doc(
        "darkroom_unfinished_images",
        "Images without a final state, by the stage they wait for and its status (waiting, overdue, queued, paused, "
        "stuck).",
        "`overdue`: an event was lost and is sent again; `stuck`: that had no effect, `darkroom reconcile --dry-run` "
        "names them; `queued`, `paused`: see that stage.",
    ),
    ["stage", "state"],
)
OLDEST_UNFINISHED = Gauge(
    *_doc(
        "darkroom_oldest_unfinished_seconds",
        "Age of the oldest unfinished image.",
        "Above the longest retry: `darkroom reconcile --dry-run` names the stage it waits for.",
    )
)
SENT_AGAIN = Counter(
    *_doc(
        "darkroom_sent_again_total",
        "Events the reconciler sent again because their outcome was missing.",
        "Above zero: an event was lost; see that stage's log and the broker.",
    ),
    ["stage"],
)
MISSING_OBJECTS = Counter(
    *_doc(
        "darkroom_missing_objects_total",
        "Objects of completed images found missing, by the stage that creates them.",
        "Objects were removed or lost; the stage recreates them if possible.",
    ),
    ["stage"],
)
RECONCILED_AT = Gauge(
    *_doc(
        "darkroom_reconciled_timestamp_seconds",
        "Unix time of the reconciler's last complete pass; 0 in processes without one.",
        "Too long ago: see the reconciler's log.",
    )
)
FEATURE_IMAGES = Counter(
    *_doc(
        "darkroom_feature_images_total",
        "Images sent for their vector alone, by result (encoded, undecodable, refused).",
        "`refused`: the queue was full; add query processes, or a faster model backend.",
    ),
    ["result"],
)
FEATURES_WAITING = Gauge(
    *_doc(
        "darkroom_features_waiting_images",
        "Images sent for their vector that are queued or being encoded.",
        "At DARKROOM_FEATURES__QUEUE: further ones are refused.",
    )
)
FEATURE_BATCH = Histogram(
    *_doc(
        "darkroom_feature_batch_images",
        "Images per model call, of those sent for their vector alone.",
        "Always 1 under load: raise DARKROOM_FEATURES__BATCH_WAIT_S.",
    ),
    buckets=_BATCH,
)

FETCHES = Counter(
    *_doc(
        "darkroom_fetches_total",
        "Requests for the image of a URL, by answer (fetched, stored, not-modified, refused, refused-before).",
        "Few `stored`: URLs are rarely asked for twice. Many `refused`: a client sends URLs that lead nowhere.",
    ),
    ["answer"],
)
FETCH_BYTES = Counter(
    *_doc(
        "darkroom_fetch_bytes_total",
        "Bytes of images asked for by URL: `fetched` from sources, or `saved` by stored answers.",
        "For capacity planning and the cost of sources.",
    ),
    ["kind"],
)
SOURCE_REQUESTS = Counter(
    *_doc(
        "darkroom_source_requests_total",
        "Requests sent to sources, by those with rules of their own, else `other`.",
        "What a source bills: compare with its contract.",
    ),
    ["source"],
)
LIVE_LISTENERS = Gauge(
    *_doc(
        "darkroom_live_listeners",
        "Open streams of live progress in this process.",
        "Near `live.max_listeners`: add query processes.",
    )
)
LIVE_CUT = Counter(
    *_doc(
        "darkroom_live_cut_total",
        "Streams of live progress closed because their reader was too slow; it may resume.",
        "Occasionally above zero: clients with slow connections. Constantly: raise `live.queue`.",
    )
)


Metric = TypeVar("Metric", Counter, Gauge, Histogram)

_SERIES: dict[tuple[object, ...], Any] = {}


def series(metric: Metric, *labels: str) -> Metric:
    """Return a metric's series for label values, cached for code that runs for every event.

    Only for metrics whose series are never removed.
    """
    found: Metric | None = _SERIES.get((metric, *labels))
    if found is None:
        found = _SERIES[metric, *labels] = metric.labels(*labels)
    return found


def names() -> set[str]:
    """Return every series name the registry can expose, in Prometheus spelling."""
    found: set[str] = set()
    for metric in REGISTRY.collect():
        if not metric.name.startswith("darkroom_"):
            continue
        found.add(metric.name)
        if metric.type == "counter":
            found.add(metric.name + "_total")
        if metric.type == "histogram":
            found |= {metric.name + suffix for suffix in ("_bucket", "_count", "_sum")}
    return found
