"""Fixtures of the unit tests."""

from __future__ import annotations

from tests.support.reused_engine import reused_engine

__all__ = ["reused_engine"]
