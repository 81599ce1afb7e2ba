"""Series of metrics that are looked up for every event."""

from __future__ import annotations

from prometheus_client import REGISTRY

from streams.telemetry import metrics


def test_a_cached_series_is_the_metric_s_own() -> None:
    """What is counted through the cache is exported, under its own labels."""
    for outcome, times in (("emitted", 2), ("dead", 1)):
        for _ in range(times):
            metrics.series(metrics.EVENTS, "cached-series", outcome).inc()
    assert metrics.series(metrics.EVENTS, "cached-series", "dead") is metrics.EVENTS.labels("cached-series", "dead")
    values = [
        REGISTRY.get_sample_value("darkroom_events_total", {"stage": "cached-series", "outcome": outcome})
        for outcome in ("emitted", "dead")
    ]
    assert values == [2, 1]
