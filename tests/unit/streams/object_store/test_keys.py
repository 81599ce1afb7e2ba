"""Object keys: which are valid."""

from __future__ import annotations

import pytest

from streams.object_store.keys import KEY_BYTES, SEGMENT_BYTES, check_key


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b",
        ".a/b.",
        "a/..b/c..",
        ".../x",
        "erasures/0198c0de-7a11-7abc-8def-0123456789ab.json",
        "é" * (SEGMENT_BYTES // 2),
        "/".join(["a" * 100] * 10),
    ],
)
def test_a_relative_key_without_special_segments_is_valid(key: str) -> None:
    """Dots within a name are allowed, as is any other text within the limits."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b", "a\n", "\na", "a/b\n",
        "a\x00b", "a\x1fb", "a\x7fb", "a\\b", "a/..\n", "\ud800", "a" * (SEGMENT_BYTES + 1), "é" * SEGMENT_BYTES,
        "x/" + "é" * SEGMENT_BYTES, "/".join(["a" * 100] * (KEY_BYTES // 100)) + "/" + "a" * 50,
    ],
)  # fmt: skip
def test_any_other_key_is_refused(key: str) -> None:
    """A key that could leave the store, name two objects, or exceed a limit, is refused."""
    with pytest.raises(ValueError, match="object key"):
        check_key(key)
