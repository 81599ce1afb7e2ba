"""Settings of the statistics."""

from __future__ import annotations

from pydantic import Field

from streams.settings import Group


class StatisticsSettings(Group):
    """Refresh intervals and limits of the statistics; DARKROOM_STATISTICS__…"""

    refresh_s: float = Field(10.0, ge=0, description="seconds for which rates and queue lengths are cached")
    walk_every_s: float = Field(300.0, ge=0, description="seconds between two scans of records and objects")
    max_records: int = Field(50_000, ge=1, description="newest images whose stages one scan counts")
    max_objects: int = Field(500_000, ge=1, description="objects of each kind that one scan counts")
    rest: float = Field(4.0, ge=0, description="seconds of pause per second of scanning")
    wait_s: float = Field(3.0, gt=0, description="seconds a request waits for the first statistics")
