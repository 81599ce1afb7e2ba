"""Errors of brokers that refuse a client: what was refused, and which settings or ACLs to change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from confluent_kafka import KafkaError as ConfluentError
from confluent_kafka import KafkaException

from streams.errors import AccessDenied, DependencyUnavailable
from streams.kafka.security import aiokafka_arguments, uses_sasl
from streams.settings import KafkaSettings

PROBE_S = 5.0

_UNAUTHENTICATED = (SaslAuthenticationFailed, AuthenticationFailedError, UnsupportedSaslMechanismError)
_UNAUTHORIZED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, ClusterAuthorizationFailedError)
_CONFLUENT_UNAUTHORIZED = (
    ConfluentError.TOPIC_AUTHORIZATION_FAILED,
    ConfluentError.GROUP_AUTHORIZATION_FAILED,
    ConfluentError.CLUSTER_AUTHORIZATION_FAILED,
)


def who(kafka: KafkaSettings) -> str:
    """Return how the brokers know this client, without secrets."""
    if not uses_sasl(kafka):
        return "the client certificate" if kafka.client_cert_file else "clients without credentials"
    name = kafka.oauth_client_id if kafka.sasl_mechanism == "OAUTHBEARER" else kafka.username
    return f"user {name} ({kafka.sasl_mechanism})"


def unauthenticated(kafka: KafkaSettings, reason: str) -> AccessDenied:
    """Return the error of refused credentials."""
    checked = "USERNAME and DARKROOM_KAFKA__PASSWORD"
    if not uses_sasl(kafka):
        checked = "CLIENT_CERT_FILE"
    elif kafka.sasl_mechanism == "OAUTHBEARER":
        checked = "OAUTH_CLIENT_ID and DARKROOM_KAFKA__OAUTH_CLIENT_SECRET"
    return AccessDenied(
        f"Kafka at {kafka.bootstrap} did not accept {who(kafka)}: {reason}. Check DARKROOM_KAFKA__{checked}."
    )


def unauthorized(kafka: KafkaSettings, reason: str) -> AccessDenied:
    """Return the error of a missing ACL."""
    return AccessDenied(
        f"Kafka at {kafka.bootstrap} denies {who(kafka)} access: {reason}. Grant the ACLs in docs/kafka-security.md "
        "(`darkroom topics acls`)."
    )


def untrusted(kafka: KafkaSettings, reason: str) -> DependencyUnavailable:
    """Return the error of a failed TLS handshake."""
    return DependencyUnavailable(
        f"no TLS connection to Kafka at {kafka.bootstrap}: {reason}. Check DARKROOM_KAFKA__BOOTSTRAP, "
        "DARKROOM_KAFKA__CA_FILE and DARKROOM_KAFKA__CLIENT_CERT_FILE."
    )


def undelivered(kafka: KafkaSettings, error: Exception, topics: Iterable[str]) -> str:
    """Return why messages to these topics of the broker were not confirmed."""
    if isinstance(error, _UNAUTHORIZED):
        return str(unauthorized(kafka, f"Write on {', '.join(sorted(set(topics)))}"))
    return repr(error)


async def explained(kafka: KafkaSettings, error: Exception) -> DependencyUnavailable:
    """Return the error of a failed aiokafka call.

    aiokafka only logs why it could not connect; a connection to a secured broker is therefore tried once more.
    """
    if isinstance(error, KafkaConnectionError | TimeoutError) and kafka.security_protocol != "plaintext":
        error = await _connection_error(kafka) or error
    if isinstance(error, _UNAUTHENTICATED):
        return unauthenticated(kafka, str(error))
    if isinstance(error, ClusterAuthorizationFailedError):  # only producers use an ACL of the cluster: since KIP-679
        return unauthorized(kafka, "Write on at least one topic")
    if isinstance(error, _UNAUTHORIZED):
        return unauthorized(kafka, str(error))
    if isinstance(error, ssl.SSLError):
        return untrusted(kafka, str(error))
    return DependencyUnavailable(f"Kafka at {kafka.bootstrap} does not answer: {error!r}")


def refused(
    kafka: KafkaSettings, error: KafkaException | TimeoutError, events: Sequence[ConfluentError]
) -> DependencyUnavailable | None:
    """Return the error of a confluent-kafka call that failed because the brokers refuse this client, else None.

    `events` are the errors that the client's `error_cb` received: a call itself only reports a timeout.
    """
    for found in (*(argument for argument in error.args if isinstance(argument, ConfluentError)), *reversed(events)):
        if found.code() == ConfluentError._AUTHENTICATION:
            return unauthenticated(kafka, found.str())
        if found.code() in _CONFLUENT_UNAUTHORIZED:
            return unauthorized(kafka, found.str())
        if found.code() == ConfluentError._SSL:
            return untrusted(kafka, found.str())
    return None


async def _connection_error(kafka: KafkaSettings) -> Exception | None:
    """Return why no connection can be opened, None if one can or no broker answers."""
    arguments = aiokafka_arguments(kafka)
    for host, port, _ in collect_hosts(arguments.pop("bootstrap_servers")):
        try:
            async with asyncio.timeout(PROBE_S):
                connection = await create_conn(host, port, request_timeout_ms=int(PROBE_S * 1000), **arguments)
        except (*_UNAUTHENTICATED, ssl.SSLError) as error:
            return error
        except (OSError, KafkaError, TimeoutError):
            continue
        connection.close()
        return None
    return None
