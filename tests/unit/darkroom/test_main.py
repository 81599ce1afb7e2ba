"""The command line's own errors."""

from __future__ import annotations

import pytest

from darkroom import main


def test_unusable_settings_end_a_command_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with contradictory Kafka settings names the variable instead of a traceback."""
    monkeypatch.setenv("DARKROOM_KAFKA__SECURITY_PROTOCOL", "sasl_ssl")
    monkeypatch.setattr("sys.argv", ["darkroom", "topics", "create"])
    with pytest.raises(SystemExit, match="needs DARKROOM_KAFKA__SASL_MECHANISM"):
        main.main()
