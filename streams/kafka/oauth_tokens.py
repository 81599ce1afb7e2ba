"""Access tokens of SASL OAUTHBEARER: the OAuth 2.0 client credentials grant (RFC 6749 section 4.4).

Only for aiokafka and Faust, which take a provider; librdkafka requests its tokens itself.
"""

from __future__ import annotations

import asyncio
import ssl
import time

import httpx
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import SaslAuthenticationFailed

from streams.settings import KafkaSettings

RENEWED_AT = 0.8  # of a token's lifetime, as librdkafka does
DEFAULT_LIFETIME_S = 300.0  # of a token whose response does not state it
TIMEOUT_S = 10.0


_issued: dict[KafkaSettings, tuple[str, float]] = {}  # token, and the monotonic time to renew it


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Requests tokens from the configured endpoint.

    All clients of the process share a token until most of its lifetime has passed: some connect every second.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka

    async def token(self) -> str:
        """Return a valid token. Raises SaslAuthenticationFailed if the endpoint does not issue one."""
        token, renew_at = _issued.get(self._kafka, ("", 0.0))
        began = time.monotonic()
        if not token or began >= renew_at:
            token, lifetime_s = await self._request()
            _issued[self._kafka] = (token, began + RENEWED_AT * lifetime_s)
        return token

    async def _request(self) -> tuple[str, float]:
        kafka = self._kafka
        secret = kafka.oauth_client_secret.get_secret_value() if kafka.oauth_client_secret else ""
        form = {"grant_type": "client_credentials", **({"scope": kafka.oauth_scope} if kafka.oauth_scope else {})}
        try:
            verify = await asyncio.to_thread(ssl.create_default_context, cafile=kafka.oauth_ca_file)
            async with httpx.AsyncClient(verify=verify, timeout=TIMEOUT_S) as client:
                answer = await client.post(
                    str(kafka.oauth_token_url), data=form, auth=(kafka.oauth_client_id or "", secret)
                )
            answer.raise_for_status()
            body = answer.json()
            return str(body["access_token"]), float(body.get("expires_in", DEFAULT_LIFETIME_S))
        except httpx.HTTPStatusError as error:
            reason = f"answered with status {error.response.status_code}"
        except (httpx.HTTPError, OSError) as error:
            reason = f"does not answer: {error!r}"
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = "answered without an access token"
        raise SaslAuthenticationFailed(f"the token endpoint {kafka.oauth_token_url} {reason}")
