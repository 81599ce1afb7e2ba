"""Tokens of OAUTHBEARER from an HTTP token endpoint."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import SaslAuthenticationFailed

from streams.kafka.oauth_tokens import ClientCredentials
from streams.settings import KafkaSettings
from tests.support.token_endpoint import token_endpoint


def settings(url: str) -> KafkaSettings:
    """Return the settings of an OAuth client."""
    return KafkaSettings.model_validate(
        {
            "security_protocol": "sasl_plaintext",
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_url": url,
            "oauth_client_id": "sanitizer",
            "oauth_client_secret": "a-secret",
            "oauth_scope": "kafka",
        }
    )


def numbered(lifetime_s: int) -> Callable[[int], dict[str, Any]]:
    """Return the responses of an endpoint whose tokens are numbered."""
    return lambda number: {"access_token": f"token-{number}", "expires_in": lifetime_s}


async def test_a_token_is_shared_until_it_expires() -> None:
    """One request serves all clients of the process; a token whose lifetime has passed is requested again."""
    with token_endpoint(200, numbered(300)) as (url, received):
        assert [await ClientCredentials(settings(url)).token() for _ in range(3)] == ["token-1"] * 3
    basic = b64encode(b"sanitizer:a-secret").decode()
    assert received == [(f"Basic {basic}", {"grant_type": ["client_credentials"], "scope": ["kafka"]})]
    with token_endpoint(200, numbered(0)) as (url, _):
        assert [await ClientCredentials(settings(url)).token() for _ in range(2)] == ["token-1", "token-2"]


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [(401, {"error": "invalid_client"}, "answered with status 401"), (200, {}, "answered without an access token")],
)
async def test_a_refusal_names_the_endpoint(status: int, body: dict[str, Any], sentence: str) -> None:
    """An endpoint that issues no token is named, without the secret."""
    with (
        token_endpoint(status, lambda _: body) as (url, _),
        pytest.raises(SaslAuthenticationFailed, match=sentence) as error,
    ):
        await ClientCredentials(settings(url)).token()
    assert url in str(error.value)
    assert "a-secret" not in str(error.value)


async def test_an_endpoint_that_does_not_answer_is_named() -> None:
    """A connection error is an error of Kafka's client, which its callers handle."""
    with pytest.raises(SaslAuthenticationFailed, match="does not answer"):
        await ClientCredentials(settings("http://127.0.0.1:9/token")).token()
