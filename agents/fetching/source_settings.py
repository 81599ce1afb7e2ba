"""Limits of a download, which sources are allowed, and how often each may be asked."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pydantic import Field

from agents.core.url_guard import Policy
from agents.fetching.source_rules import SourceRules


class SourceSettings(SourceRules):
    """Limits of a download, and which sources are allowed."""

    max_bytes: int = Field(50_000_000, ge=1, description="bytes of the largest file accepted")
    total_timeout_s: float = Field(60.0, gt=0, description="seconds a download may take, redirects included")
    idle_timeout_s: float = Field(10.0, gt=0, description="seconds without data before a download fails")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds a connection may take, TLS handshake included")
    max_redirects: int = Field(5, ge=0, description="redirects followed, each checked like the first URL")
    max_connections: int = Field(64, ge=1, description="concurrent connections")
    retry_after_limit_s: float = Field(1800.0, gt=0, description="longest wait a source may ask for by Retry-After")
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="non-public networks that may be fetched from, as a JSON list of CIDRs (intranets)"
    )
    allowed_ports: tuple[int, ...] = Field((), description="the only ports allowed; empty: 80, 443, 1024 and up")
    ca_file: Path | None = Field(None, description="PEM certificates trusted besides the public ones (intranets)")
    user_agent: str = Field("Darkroom/1 (image fetcher)", description="User-Agent header of downloads")

    def policy(self) -> Policy:
        """Return what the guard allows."""
        return Policy(networks=self.allowed_networks, ports=frozenset(self.allowed_ports))
