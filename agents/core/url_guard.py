"""Which URLs may be fetched, and which addresses may be connected to (server-side request forgery).

`check_url` parses the URL strictly and refuses ambiguous ones. `refusal` checks an address after resolution, whatever
its spelling: only global unicast passes, per the IANA special-purpose registries (RFC 6890 and its updates), and an
embedded IPv4 address is checked too. Connect to the checked address, without resolving again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import idna

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_LIMIT = 4096  # characters
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# WHATWG URL, "ends in a number": such a host must be an IPv4 address.
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")

_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "private"),
        ("2001::/23", "reserved"),  # Teredo among them
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
# Metadata services that return credentials. The Azure one is a public address; the others are in refused networks
# and listed so that an allowed network does not open them by accident.
METADATA: frozenset[Address] = frozenset(
    ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.169.253", "100.100.100.200",
                 "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254")
)  # fmt: skip
_METADATA_REASON = "cloud metadata"
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


class UrlNotAllowed(ValueError):
    """This URL, or an address it resolves to, must not be fetched; the message is public."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Exceptions to the defaults."""

    networks: tuple[Network, ...] = ()  # allowed though not global, for intranets
    ports: frozenset[int] = frozenset()  # empty: 80, 443 and all from 1024

    def allows_port(self, port: int) -> bool:
        """Return whether a port may be connected to."""
        return port in self.ports if self.ports else port in (80, 443) or 1024 <= port <= 65535


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL: `url` is its normal form (ASCII host, no fragment), the only one to fetch."""

    url: str
    host: str  # ASCII name or address, without brackets
    port: int


def check_url(url: str, policy: Policy) -> Target:
    """Return the target of a URL. Raises UrlNotAllowed. Resolves no names; literal addresses are checked."""
    if len(url) > URL_LIMIT or _UNPRINTABLE.search(url):
        raise UrlNotAllowed("the URL is too long, or contains spaces, control characters or backslashes")
    try:
        url.encode()  # lone surrogates have no bytes
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlNotAllowed("the URL cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise UrlNotAllowed("only http and https URLs are fetched")
    if "@" in parts.netloc:
        raise UrlNotAllowed("the URL must not contain credentials")
    host, literal = _host(parts.hostname or "", bracketed=parts.netloc.startswith("["))
    if port is None:
        port = _DEFAULT_PORTS[parts.scheme]
    if not policy.allows_port(port):
        raise UrlNotAllowed(f"port {port} is not allowed")
    if literal is not None:
        check_addresses([literal], policy)
    shown = f"[{host}]" if isinstance(literal, IPv6Address) else host
    place = shown if port == _DEFAULT_PORTS[parts.scheme] else f"{shown}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return Target(f"{parts.scheme}://{place}{parts.path or '/'}{query}", host, port)


def _host(name: str, *, bracketed: bool) -> tuple[str, Address | None]:
    if bracketed:
        try:
            literal = IPv6Address(name)
        except ValueError as error:
            raise UrlNotAllowed("the host is not an IPv6 address") from error
        if literal.scope_id is not None:
            raise UrlNotAllowed("the host must not contain a zone index")
        return str(literal), literal
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise UrlNotAllowed("the host is not an internationalised domain name") from error
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlNotAllowed("the URL names no valid host")
    _check_decodes(labels)
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return name, IPv4Address(name)
        except ValueError as error:
            raise UrlNotAllowed("the host is an unusual spelling of an IPv4 address") from error
    return name, None


def _check_decodes(labels: Sequence[str]) -> None:
    """Raise UrlNotAllowed for a host with an A-label that stands for nothing, or that httpx cannot decode.

    httpx decodes a whole host that begins with an A-label.
    """
    try:
        for label in labels:
            if label.startswith("xn--"):
                idna.ulabel(label)
        if labels[0].startswith("xn--"):
            idna.decode(".".join(labels))
    except UnicodeError as error:
        raise UrlNotAllowed("the host is not an internationalised domain name") from error


def embedded_ipv4(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses embedded in an IPv6 address: mapped, compatible, 6to4, Teredo, NAT64, ISATAP."""
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return (low,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _COMPATIBLE or int(address) >> 32 & 0xFDFFFFFF == 0x00005EFE:  # RFC 5214 section 6.1
        return (low,)
    return ()


def refusal(address: Address, policy: Policy) -> str | None:
    """Return why an address must not be connected to, None if it may be.

    A metadata address is refused even inside an allowed network, unless that network is exactly this address.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return refusal(address.ipv4_mapped, policy)  # the socket layer connects to exactly that
    holding = [n for n in policy.networks if n.version == address.version and address in n]
    inner = [refusal(i, policy) for i in embedded_ipv4(address)] if isinstance(address, IPv6Address) else []
    if address in METADATA and not any(n.num_addresses == 1 for n in holding):
        return _METADATA_REASON
    if _METADATA_REASON in inner:
        return _METADATA_REASON
    if holding:
        return None
    return next((reason for reason in (_special(address), *inner) if reason), None)


def _special(address: Address) -> str | None:
    for network, reason in _REFUSED:
        if network.version == address.version and address in network:
            return reason
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST and address not in _NAT64:
        return "reserved"
    return None


def check_addresses(addresses: Sequence[Address], policy: Policy) -> None:
    """Raise UrlNotAllowed unless every address may be connected to: a single forbidden one suggests an attack."""
    if not addresses:
        raise UrlNotAllowed("the host has no address")
    for address in addresses:
        if reason := refusal(address, policy):
            raise UrlNotAllowed(f"the host's address is not a public one ({reason})")
