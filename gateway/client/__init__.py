"""The Python client; see `gateway.client.clients`."""

from gateway.client.clients import AsyncDarkroom, Darkroom, NotFinished
from gateway.client.exchange import Refused, Unreachable

__all__ = ["AsyncDarkroom", "Darkroom", "NotFinished", "Refused", "Unreachable"]
