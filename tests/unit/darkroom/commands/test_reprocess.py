"""The output of `darkroom reprocess`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from threading import Thread
from typing import Any

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from darkroom.commands.reprocess import duration, jobs_table, pace, plan_text, reprocess, sentence
from schemas.http.admin import ReprocessList, ReprocessPlan, ReprocessView
from schemas.values import Profile

VIEW = ReprocessView(
    id="ocr-7", stage="ocr", where="owner=anna", per_second=20, state="running", total=100, done=30, skipped=10,
    reasons={"in-process": 10}, rate=4, eta_s=15, started_at="2026-01-01T00:00:00Z", updated_at="2026-01-01T00:00:10Z",
)  # fmt: skip
PLAN = ReprocessPlan(stage="ocr", where="", images=3, counted_all=True, first=("a", "b", "c"))
app = Typer()
app.command()(reprocess)


class Gateway:
    """A gateway with prepared answers that records its requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, str, Any, str | None]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                sent = json.loads(body) if body else None
                gateway.requests.append((self.command, self.path, sent, self.headers.get("authorization")))
                status, answer = gateway.answers.pop(0)
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's names

            def log_message(self, *_args: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def run(self, *arguments: str, token: str = "") -> tuple[int, str]:
        """Run the command against this gateway; return its exit code and output."""
        environment = {"DARKROOM_URL": self.url, "DARKROOM_GATEWAY__ADMIN_TOKEN": token}
        done = CliRunner().invoke(app, list(arguments), env=environment)
        output = str(done.exception) if isinstance(done.exception, SystemExit) else ""
        return done.exit_code, done.output + output


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Yield a gateway on its own port."""
    gateway = Gateway()
    thread = Thread(target=gateway.server.serve_forever, daemon=True)
    thread.start()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()
    thread.join()


def test_without_yes_nothing_starts(gateway: Gateway) -> None:
    """Without --yes the command reports how many images it selects, and how to start."""
    gateway.answers = [(200, PLAN.model_dump_json().encode())]
    code, output = gateway.run("--stage", "ocr")
    assert code == 0
    assert "again for 3 images" in output
    assert "--yes" in output
    assert [request[2]["dry_run"] for request in gateway.requests] == [True]


def test_with_yes_it_follows_the_rerun(gateway: Gateway) -> None:
    """The command starts the rerun with the token, polls until it is done, and prints the result."""
    done = VIEW.model_copy(update={"state": "done", "done": 90, "eta_s": None})
    gateway.answers = [(202, VIEW.model_dump_json().encode()), (200, done.model_dump_json().encode())]
    code, output = gateway.run("--stage", "ocr", "--where", "owner=anna", "--per-second", "5", "--yes", token="s" * 16)
    assert code == 0
    assert "ocr-7 is done: 90 of 100 images sent to ocr; skipped: 10 in-process" in output
    assert [request[:2] for request in gateway.requests] == [
        ("POST", "/api/v1/admin/reprocess"), ("GET", "/api/v1/admin/reprocess/ocr-7"),
    ]  # fmt: skip
    assert gateway.requests[0][2] == {"stage": "ocr", "where": "owner=anna", "per_second": 5.0}
    assert {request[3] for request in gateway.requests} == {f"Bearer {'s' * 16}"}


def test_a_profile_is_sent_and_listed(gateway: Gateway) -> None:
    """The option's JSON is part of the request, of a dry run too, and the list shows it."""
    shown = VIEW.model_copy(update={"profile": Profile(stages=("detector",), parameters={"ocr": {"a": 1}})})
    gateway.answers = [(200, PLAN.model_dump_json().encode())]
    text = '{"stages": ["detector"], "parameters": {"ocr": {"min_confidence": 0.5}}}'
    assert gateway.run("--stage", "ocr", "--profile", text)[0] == 0
    assert gateway.requests[0][2]["profile"] == json.loads(text)
    table = StringIO()
    Console(width=250, file=table).print(jobs_table(ReprocessList(jobs=(shown, VIEW))))
    assert '{"stages": ["detector"], "parameters": {"ocr": {"a": 1}}}' in table.getvalue()


@pytest.mark.parametrize(
    ("text", "field"), [("{half", "profile"), ("[]", "profile"), ('{"stages": ["painter"]}', "profile.stages.0")]
)
def test_an_invalid_profile_sends_nothing(gateway: Gateway, text: str, field: str) -> None:
    """The error names the field, and the exit code is 2."""
    code, output = gateway.run("--stage", "ocr", "--profile", text, "--yes")
    assert code == 2
    assert f"{field}:" in output
    assert gateway.requests == []


def test_reruns_are_listed_and_stopped(gateway: Gateway) -> None:
    """The list shows rate and remaining time; a cancel shows where the rerun stopped."""
    cancelled = VIEW.model_copy(update={"state": "cancelled", "eta_s": None})
    gateway.answers = [
        (200, ReprocessList(jobs=(VIEW,)).model_dump_json().encode()), (200, cancelled.model_dump_json().encode()),
    ]  # fmt: skip
    assert "ocr-7" in gateway.run("--list")[1]
    assert "ocr-7 is cancelled: 30 of 100" in gateway.run("--cancel", "ocr-7")[1]
    assert gateway.requests[1][:2] == ("POST", "/api/v1/admin/reprocess/ocr-7/cancel")


def test_a_refusal_is_printed(gateway: Gateway) -> None:
    """The gateway's refusal is printed unchanged, and the exit code is not 0."""
    problem = {
        "type": "x",
        "code": "invalid-field",
        "title": "t",
        "status": 422,
        "detail": "no such key",
        "instance": "/",
    }
    for status, body, expected in ((422, json.dumps(problem).encode(), "no such key"), (502, b"<html>", "502")):
        gateway.answers = [(status, body)]
        code, output = gateway.run("--stage", "ocr")
        assert code != 0
        assert expected in output
    assert gateway.run()[0] != 0  # no stage


def test_output_format() -> None:
    """Numbers, durations and reasons are formatted for people."""
    assert pace(VIEW) == "4.0/s, 15 s to go"
    assert pace(VIEW.model_copy(update={"total": None, "eta_s": None})) == "counting"
    assert sentence(VIEW.model_copy(update={"state": "failed", "error": "why"})).endswith("(why)")
    assert plan_text(PLAN.model_copy(update={"images": 1, "first": ("a",)}), 20).startswith(
        "ocr would run again for 1 image,"
    )
    assert "more than 3 images" in plan_text(PLAN.model_copy(update={"counted_all": False}), 20)
    assert [duration(seconds) for seconds in (4.4, 61, 7325)] == ["4 s", "1 min 1 s", "2 h 2 min"]
    shown = StringIO()
    Console(width=200, file=shown).print(jobs_table(ReprocessList(jobs=(VIEW,))))
    assert "30 of 100" in shown.getvalue()
