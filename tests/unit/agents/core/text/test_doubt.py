"""Which lines are believed."""

from __future__ import annotations

import pytest

from agents.core.text.doubt import Evidence, believed, is_text, is_unread


def line(text: str, confidence: float = 1.0, found: float = 0.8, width: float = 400, height: float = 40) -> Evidence:
    return Evidence(text, confidence, found, width, height)


@pytest.mark.parametrize(
    "text", ["Trail closed until 15 May", "d a t e l i n e", "今天天气很好，我们去公园散步。", "12.50", "E 4", "→ 56Km"]
)
def test_text_is_believed(text: str) -> None:
    """Lines of known scripts that the engine is sure of are text, also when spaced out or short."""
    assert is_text(line(text, width=max(len(text), 4) * 20))


@pytest.mark.parametrize(
    "doubtful",
    [line("11111", 0.85, 0.34), line("兴", 0.26, 0.4, 40), line("0", 0.98, 0.55, 40), line("m", 0.09), line("。", 0.99),
     line("", 0.0), line("  ", 0.9), line("a7f", 0.4)],
)  # fmt: skip
def test_noise_is_not_believed(doubtful: Evidence) -> None:
    """What the detector or the recogniser is not sure of, and lone signs, are no text."""
    assert not is_text(doubtful)


@pytest.mark.parametrize(
    "unread",
    [line("", 0.0), line(".", 0.96, 0.72, 690), line("Σεα  ι ενα πλ καλ.", 0.84), line("   ", 0.6), line("川", 0.6)],
)
def test_a_long_box_with_hardly_any_letters_is_in_another_script(unread: Evidence) -> None:
    """Certain text in which the engine sees few letters, or letters it only knows from formulas, is unread."""
    assert is_unread(unread)
    assert not is_text(unread)


def test_what_is_read_is_not_unread() -> None:
    """A price list's wide box, a short word, and noise are not taken for another script."""
    assert not is_unread(line("Measurements were repeated three times"))
    assert not is_unread(line("", 0.0, 0.4))
    assert not is_unread(line("", 0.0, 0.8, 40))


def test_one_character_alone_in_an_image_must_be_certain() -> None:
    """Rings are never believed alone; beside a longer line, and with certainty, one character is."""
    ring, sign = line("O", 1.0, 0.8, 40), line("9", 1.0, 0.8, 40)
    assert believed([ring, sign]) == [False, True]
    assert believed([ring, line("Platform")]) == [True, True]
    assert believed([line("9", 0.92, 0.8, 40)]) == [False]
