"""Every metric, each with its meaning and what to do about it. Dashboards and alerts are tested against this list."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BATCH = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Advice:
    """What an operator needs to know of a metric."""

    name: str
    meaning: str
    action: str


ADVICE: list[Advice] = []


def _noted(name: str, meaning: str, action: str) -> tuple[str, str]:
    ADVICE.append(Advice(name, meaning, action))
    return name, meaning


EVENTS = Counter(
    *_noted(
        "darkroom_events_total",
        "Events finished by a stage, by how they ended (emitted, skipped, rejected, retried, dead, ignored, gone).",
        "A rising share of `retried` names a slow dependency; of `dead`, a bug: see the dead letters.",
    ),
    ["stage", "outcome"],
)
STAGE_SECONDS = Histogram(
    *_noted(
        "darkroom_stage_duration_seconds",
        "Time from taking an event to its outputs being delivered.",
        "Scale the stage, or look which part of it grew.",
    ),
    ["stage"],
    buckets=_SECONDS,
)
COMPUTE_SECONDS = Histogram(
    *_noted("darkroom_compute_duration_seconds", "Time of the stage's own work, one try.", "Compare with the bench."),
    ["stage"],
    buckets=_SECONDS,
)
EVENT_AGE_SECONDS = Histogram(
    *_noted(
        "darkroom_event_age_seconds",
        "Age of an event when its stage takes it: the time it waited.",
        "Grows with lag: scale the stage.",
    ),
    ["stage"],
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram(
    *_noted("darkroom_batch_size", "Events per call of a batched stage.", "Always 1 under load: raise batch_wait_s."),
    ["stage"],
    buckets=_BATCH,
)
IN_FLIGHT = Gauge(
    *_noted("darkroom_in_flight_events", "Events taken and not yet done.", "At its bound: the stage is saturated."),
    ["stage"],
)
LAG = Gauge(
    *_noted(
        "darkroom_consumer_lag_events",
        "Events on the topic's partitions this worker owns, not yet committed.",
        "The scaling signal; if it grows while replicas are at their maximum, add partitions or capacity.",
    ),
    ["stage", "topic", "partition"],
)
RESULTS_REUSED = Counter(
    *_noted(
        "darkroom_results_reused_total",
        "Results found instead of computed.",
        "None during a replay: a stage version or a parameter changed.",
    ),
    ["stage"],
)
RETRIES = Counter(
    *_noted(
        "darkroom_retries_total",
        "Tries that failed in a way that may pass, by where the next one happens (in-place, or the delay's name).",
        "Look at the named dependency.",
    ),
    ["stage", "where"],
)
DEAD_LETTERS = Counter(
    *_noted(
        "darkroom_dead_letters_total",
        "Events given up on, by stable code.",
        "`darkroom dead-letters list`; mend the cause, then replay.",
    ),
    ["stage", "code"],
)
REJECTIONS = Counter(
    *_noted("darkroom_rejections_total", "Images refused, by stable code.", "Normal; a jump names a bad sender."),
    ["stage", "code"],
)
MODEL_AVAILABLE = Gauge(
    *_noted(
        "darkroom_model_available",
        "1 if the stage's model is loaded and answered its golden image rightly, 0 if the stage skips.",
        "0: `darkroom models verify` says why.",
    ),
    ["stage", "model"],
)
BULK_WAITING = Gauge(
    *_noted(
        "darkroom_bulk_waiting_events",
        "Events of the bulk lane that wait for room in the pipeline, of the partitions this router owns.",
        "It shrinks at the rate the pipeline has to spare: if too slowly, scale the stage with the oldest events.",
    )
)
BULK_IN_FLIGHT = Gauge(
    *_noted(
        "darkroom_bulk_in_flight_images",
        "Images of the bulk lane in the pipeline.",
        "Well below the window while events wait: interactive images take all there is.",
    )
)
BULK_WINDOW = Gauge(
    *_noted(
        "darkroom_bulk_window_images",
        "Images of the bulk lane that may be in the pipeline at once, as the router has found.",
        "It stays at 2 although nobody else waits: the pipeline takes long over each image; see the age of events.",
    )
)
BULK_FORWARDED = Counter(
    *_noted(
        "darkroom_bulk_forwarded_total",
        "Events let from the bulk lane into the pipeline, by the topic they went to.",
        "None while events wait: see `scheduler` in the router's health.",
    ),
    ["target"],
)
INTERACTIVE_IN_FLIGHT = Gauge(
    *_noted(
        "darkroom_interactive_in_flight_images",
        "Images in the pipeline that did not come through the bulk lane and have not ended, for a minute at most.",
        "Never zero: there is no room for bulk but one image each few seconds; scale the slowest stage.",
    )
)
PAUSED = Gauge(
    *_noted(
        "darkroom_agent_paused",
        "1 while the agent does not consume: it stopped itself at the dead-letter limit, or somebody paused it.",
        "`darkroom agents list` says why; mend the cause, then `darkroom agents resume`.",
    ),
    ["stage"],
)
BREAKER_STATE = Gauge(
    *_noted(
        "darkroom_breaker_state",
        "What a process does with calls to a dependency: 0 makes them, 1 asks once whether it is back, 2 makes none.",
        "2: the dependency failed several times in a row; /health/ready and the log name its last error.",
    ),
    ["dependency"],
)
BREAKER_OPENED = Counter(
    *_noted(
        "darkroom_breaker_opened_total",
        "Times a dependency was left alone because it failed several times in a row.",
        "Often, and soon over: the dependency is slow or overloaded rather than away.",
    ),
    ["dependency"],
)
WATCHDOG_LAG = Gauge(
    *_noted("darkroom_event_loop_lag_seconds", "How late the event loop is.", "Above 1: something blocks the loop."),
    ["process"],
)
AUTHENTICATIONS = Counter(
    *_noted(
        "darkroom_authentications_total",
        "Callers at the gateway's door, by what became of them (accepted, anonymous, missing, invalid, expired, "
        "ambiguous, foreign, insufficient-scope).",
        "Many `invalid`: somebody tries keys, or a key was rotated and a client not told; the log names the address.",
    ),
    ["result"],
)
HTTP_REQUESTS = Counter(
    *_noted("darkroom_http_requests_total", "HTTP requests by route and status.", "5xx: see the log by trace id."),
    ["app", "route", "method", "status"],
)
HTTP_SECONDS = Histogram(
    *_noted("darkroom_http_request_duration_seconds", "Time to answer.", "Uploads: storage or Kafka is slow."),
    ["app", "route"],
    buckets=_SECONDS,
)
UPLOAD_BYTES = Counter(
    *_noted("darkroom_upload_bytes_total", "Bytes accepted by the ingest gateway.", "For capacity planning."),
    ["app"],
)
FENCED = Counter(
    *_noted(
        "darkroom_fenced_events_total",
        "Events dropped because their image is deleted, before or after the work on them.",
        "Normal after deletions; many at once: somebody replays or reprocesses what is deleted.",
    ),
    ["stage"],
)
LATE_REMOVED = Counter(
    *_noted(
        "darkroom_late_removed_total",
        "What was stored for an image after its deletion and then removed, by kind (object, original, result).",
        "Normal in ones; many: workers finish long after their deadline, see the watchdog.",
    ),
    ["kind"],
)
ERASURES_FINISHED = Counter(
    *_noted(
        "darkroom_erasures_finished_total",
        "Deletions after which nothing can be written late any more.",
        "If images are deleted and this stands still, the reconciler, which runs the janitor, does not.",
    )
)
REPROCESSED = Counter(
    *_noted(
        "darkroom_reprocessed_images_total",
        "Images gone over by `darkroom reprocess`, by stage and by what came of it: `said`, or why not.",
        "`original-gone` or `no-master`: these images cannot be made anew; upload them again.",
    ),
    ["stage", "result"],
)
IMAGES = Counter(
    *_noted("darkroom_images_total", "Images that ended, by state.", "`failed` above zero: see the dead letters."),
    ["state"],
)
IMAGE_SECONDS = Histogram(
    *_noted(
        "darkroom_image_duration_seconds",
        "Time from an image's acceptance to its end.",
        "The promise to users; find the slow stage in darkroom_event_age_seconds.",
    ),
    ["state"],
    buckets=_SECONDS,
)

UNFINISHED = Gauge(
    *_noted(
        "darkroom_unfinished_images",
        "Images that have not ended, by the stage they wait for and by how that stands (waiting, overdue, queued, "
        "paused, stuck).",
        "`overdue`: an event was lost and is sent again; `stuck`: that had no effect, `darkroom reconcile --dry-run` "
        "names them; `queued`, `paused`: look at that stage.",
    ),
    ["stage", "state"],
)
OLDEST_UNFINISHED = Gauge(
    *_noted(
        "darkroom_oldest_unfinished_seconds",
        "Age of the unfinished image that was accepted first.",
        "Above the longest retry: `darkroom reconcile --dry-run` says what it waits for.",
    )
)
SENT_AGAIN = Counter(
    *_noted(
        "darkroom_sent_again_total",
        "Events the reconciler sent again, because what should have followed from them was not there.",
        "Above zero: something lost an event; look at that stage's log and at the broker.",
    ),
    ["stage"],
)
MISSING_OBJECTS = Counter(
    *_noted(
        "darkroom_missing_objects_total",
        "Objects that completed images name and that were not there when they were looked for, by the stage that "
        "makes them.",
        "Somebody removes objects, or the store lost them; the stage makes them again if it can.",
    ),
    ["stage"],
)
RECONCILED_AT = Gauge(
    *_noted(
        "darkroom_reconciled_timestamp_seconds",
        "When the reconciler last looked at all there is, unix time; 0 in processes that hold none.",
        "Too long ago: see the reconciler's log.",
    )
)
FEATURE_IMAGES = Counter(
    *_noted(
        "darkroom_feature_images_total",
        "Images sent for their vector alone, by what came of them (encoded, undecodable, refused).",
        "`refused`: more came at once than may wait; add query processes, or a faster model backend.",
    ),
    ["result"],
)
FEATURES_WAITING = Gauge(
    *_noted(
        "darkroom_features_waiting_images",
        "Images sent for their vector that were taken in and not answered yet.",
        "At DARKROOM_FEATURES__QUEUE: further ones are refused.",
    )
)
FEATURE_BATCH = Histogram(
    *_noted(
        "darkroom_feature_batch_images",
        "Images per call of the model, of those sent for their vector alone.",
        "Always 1 under load: raise DARKROOM_FEATURES__BATCH_WAIT_S.",
    ),
    buckets=_BATCH,
)

LIVE_LISTENERS = Gauge(
    *_noted(
        "darkroom_live_listeners",
        "Streams of live progress that are open in this process.",
        "Near `live.max_listeners`: add query processes.",
    )
)
LIVE_CUT = Counter(
    *_noted(
        "darkroom_live_cut_total",
        "Streams of live progress that were cut because their reader was too slow; it may resume.",
        "Above zero now and then: clients with bad connections. All the time: raise `live.queue`.",
    )
)


def names() -> set[str]:
    """Return every series name the registry can expose, as Prometheus spells it."""
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
