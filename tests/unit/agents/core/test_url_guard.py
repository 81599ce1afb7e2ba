"""Which URLs may be fetched, and which addresses may be connected to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.core.url_guard import METADATA, Policy, UrlNotAllowed, check_addresses, check_url, embedded_ipv4, refusal

STRICT = Policy()

REFUSED_V4 = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.1.2.3",
    "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.7", "192.168.1.1",
    "198.18.0.1", "198.19.255.255", "198.51.100.4", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.88.99.1",
]  # fmt: skip
PUBLIC_V4 = ["1.1.1.1", "8.8.8.8", "9.255.255.255", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
             "192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255", "126.255.255.255"]  # fmt: skip
REFUSED_V6 = [
    "::", "::1", "fc00::1", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1",
    "100::1", "64:ff9b:1::1", "2001::1", "2001:10::1", "4000::1", "5f00::1", "e000::1", "fd00:ec2::254",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1", "::8.8.8.8",
    "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
    "2002:c0a8:101::", "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe", "2600::5efe:10.0.0.1",
    "2600::200:5efe:127.0.0.1",
]  # fmt: skip
PUBLIC_V6 = ["2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2600::1", "64:ff9b::8.8.8.8", "2002:808:808::1",
             "::ffff:8.8.8.8", "2001:4860:4860::8888"]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED_V4 + REFUSED_V6)
def test_refuses_non_public_addresses(text: str) -> None:
    """An address that is not global unicast is refused, in every IPv6 form of an IPv4 address."""
    assert refusal(ip_address(text), STRICT)


@pytest.mark.parametrize("text", PUBLIC_V4 + PUBLIC_V6)
def test_passes_public_addresses(text: str) -> None:
    """The neighbours of refused networks, and public IPv6 addresses, pass."""
    assert refusal(ip_address(text), STRICT) is None


@given(st.ip_addresses(v=4))
@example(IPv4Address("192.88.99.1"))
@example(IPv4Address("192.0.0.9"))
def test_agrees_with_the_registry_on_ipv4(address: IPv4Address) -> None:
    """No IPv4 address passes that Python's copy of the IANA registry marks private, multicast or reserved."""
    if refusal(address, STRICT) is None:
        assert address.is_global
        assert not (address.is_multicast or address.is_reserved or address.is_loopback or address.is_link_local)


@given(st.ip_addresses(v=6))
def test_agrees_with_the_registry_on_ipv6(address: IPv6Address) -> None:
    """No IPv6 address passes that Python's copy of the IANA registry does not mark global."""
    if refusal(address, STRICT) is None and not embedded_ipv4(address):
        assert address.is_global
        assert not (address.is_multicast or address.is_reserved or address.is_site_local or address.is_link_local)


@given(st.ip_addresses(v=4), st.sampled_from(["mapped", "nat64", "6to4", "isatap"]))
def test_checks_an_embedded_address_like_itself(address: IPv4Address, form: str) -> None:
    """An IPv6 address with an embedded IPv4 address passes exactly when the embedded one does."""
    number = int(address)
    carrier = {
        "mapped": 0xFFFF << 32 | number,
        "nat64": 0x64FF9B << 96 | number,
        "6to4": 0x2002 << 112 | number << 80 | 1,
        "isatap": 0x2600 << 112 | 0x5EFE << 32 | number,
    }[form]
    assert (refusal(IPv6Address(carrier), STRICT) is None) == (refusal(address, STRICT) is None)


@given(st.ip_addresses(v=4))
def test_never_passes_compatible_or_teredo(address: IPv4Address) -> None:
    """Forms that no public server has are refused whatever they embed."""
    assert refusal(IPv6Address(int(address)), STRICT)
    assert refusal(IPv6Address(0x20010000 << 96 | int(address) << 64 | 0xFFFFFFFF ^ int(address)), STRICT)


@pytest.mark.parametrize(
    ("network", "inside"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("127.0.0.1/32", "127.0.0.1"),
        ("fd12::/16", "fd12::5"),
        ("127.0.0.0/8", "::ffff:127.0.0.1"),
    ],
)
def test_an_allowed_network_is_allowed(network: str, inside: str) -> None:
    """An operator's own network is allowed, its neighbours are not."""
    policy = Policy(networks=(ip_network(network),))
    assert refusal(ip_address(inside), policy) is None
    assert refusal(ip_address("192.168.0.1"), policy)
    assert refusal(ip_address("fd13::1"), policy)


@pytest.mark.parametrize("address", sorted(METADATA, key=str))
def test_metadata_needs_its_own_permission(address: IPv4Address | IPv6Address) -> None:
    """A cloud's metadata address is refused inside an allowed network, and allowed only when listed on its own."""
    everything = Policy(networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert refusal(address, everything) == "cloud metadata"
    assert refusal(address, Policy(networks=(ip_network(address),))) is None
    if isinstance(address, IPv4Address):
        assert refusal(IPv6Address(f"::ffff:{address}"), everything) == "cloud metadata"
        assert refusal(IPv6Address(f"64:ff9b::{address}"), everything) == "cloud metadata"


def test_one_forbidden_address_refuses_the_host() -> None:
    """A host with a public and a private address is refused, and so is one without any."""
    with pytest.raises(UrlNotAllowed, match="private"):
        check_addresses([ip_address("8.8.8.8"), ip_address("10.0.0.1")], STRICT)
    with pytest.raises(UrlNotAllowed, match="no address"):
        check_addresses([], STRICT)
    check_addresses([ip_address("8.8.8.8"), ip_address("2600::1")], STRICT)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTPS://Example.COM:443/a?b=c#d", "https://example.com/a?b=c"),
        ("http://example.com.:8080/x", "http://example.com:8080/x"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/ü"),
        ("http://8.8.8.8/x@y", "http://8.8.8.8/x@y"),
        ("http://[2600:0:0::1]:8080/", "http://[2600::1]:8080/"),
        ("http://my_bucket.example.com/", "http://my_bucket.example.com/"),
        ("http://1.example/", "http://1.example/"),
        ("http://XN--bcher-kva.example/", "http://xn--bcher-kva.example/"),
        ("http://my_cdn.xn--bcher-kva.example/", "http://my_cdn.xn--bcher-kva.example/"),
    ],
)
def test_gives_a_url_its_normal_form(url: str, normal: str) -> None:
    """A fetchable URL is returned with an ASCII host, without default port and fragment."""
    assert check_url(url, STRICT).url == normal
    assert check_url(normal, STRICT).url == normal


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com/", "http://", "http:///x", "http://:80/", "file:///etc/passwd",
        "ftp://example.com/x", "gopher://example.com/", "data:image/png;base64,AAAA", "javascript:alert(1)",
        "http://user@example.com/", "http://user:pw@example.com/", "http://@example.com/", "http://a@b@c/",
        "http://example.com:0/", "http://example.com:22/", "http://example.com:65536/", "http://example.com:x/",
        "http://example.com:-80/", "http://exa mple.com/", "http://example.com/\r\nHost: x", "http://example.com\\@a/",
        "http://ex%61mple.com/", "http://127.0.0.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/",
        "http://0177.0.0.1/", "http://127.1/", "http://127.0.0.1./", "http://127.0.0.0x1/", "http://0/", "http://1.2.3.4.5/",
        "http://①②⑦.⓪.⓪.①/", "http://[::1]/", "http://[::ffff:7f00:1]/", "http://[fe80::1%25eth0]/", "http://[::1/",
        "http://[1.2.3.4]/", "http://[v1.x]/", "http://[::1]x/", "http://-a.example/", "http://a..example/",
        "http://" + "a" * 64 + ".example/", "http://" + "a." * 127 + "a/", "http://example.com/" + "a" * 5000,
        "http://256.256.256.256/", "http://xn--/", "http://xn--a.example/", "http://XN--A.example/", "http://\ud800.example/",
        "http://example.com/\udfff", "http://cdn.xn--a.example/", "http://a.xn--/", "http://a.b.example.xn--zz-/",
    ],
)  # fmt: skip
def test_refuses_ambiguous_urls(url: str) -> None:
    """Other schemes, credentials, odd spellings of addresses, and anything parsers read differently are refused."""
    with pytest.raises(UrlNotAllowed):
        check_url(url, STRICT)


def test_ports_can_be_restricted() -> None:
    """With ports in the settings, only those are allowed."""
    policy = Policy(ports=frozenset({443}))
    assert check_url("https://example.com/", policy).port == 443
    for url in ("http://example.com/", "https://example.com:8443/"):
        with pytest.raises(UrlNotAllowed, match="port"):
            check_url(url, policy)


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://[", "http://a:"]))
def test_any_text_gives_a_url_or_a_refusal(text: str, start: str) -> None:
    """Any text gives a URL whose host is the checked one, or UrlNotAllowed; never another error."""
    try:
        target = check_url(start + text, STRICT)
    except UrlNotAllowed:
        return
    assert target.host.isascii()
    assert check_url(target.url, STRICT) == target


@given(st.from_regex(r"(?:[a-z]{1,3}\.)?xn--[a-z0-9-]{0,12}\.example", fullmatch=True))
def test_a_host_with_an_encoded_label_is_refused_or_readable_by_the_client(host: str) -> None:
    """A host that passes can be read by the HTTP client, which decodes internationalised names."""
    try:
        target = check_url(f"http://{host}/", STRICT)
    except UrlNotAllowed:
        return
    assert httpx.URL(target.url).host
