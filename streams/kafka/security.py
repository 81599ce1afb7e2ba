"""TLS and authentication of every connection to the brokers: one set of settings, as each client library takes it.

Faust takes its own classes: `streams.runtime.faust_worker.broker_credentials` makes them from the same arguments.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from streams.errors import NotReady
from streams.kafka.oauth_tokens import ClientCredentials
from streams.settings import KafkaSettings

_OAUTH = "OAUTHBEARER"
_BEARER_SECRETS = ("PLAIN", _OAUTH)  # mechanisms that send a secret which its reader could use


def aiokafka_arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the address and security arguments of an aiokafka client. Raises NotReady for unusable settings."""
    check_security(kafka)
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol.upper(),
    }
    if uses_tls(kafka):
        arguments["ssl_context"] = tls_context(kafka)
    if not uses_sasl(kafka):
        return arguments
    arguments["sasl_mechanism"] = kafka.sasl_mechanism
    if kafka.sasl_mechanism == _OAUTH:
        arguments["sasl_oauth_token_provider"] = ClientCredentials(kafka)
    else:
        arguments["sasl_plain_username"] = kafka.username
        arguments["sasl_plain_password"] = _secret(kafka.password)
    return arguments


def confluent_configuration(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the address and security properties of a confluent-kafka client. Raises NotReady for unusable settings."""
    check_security(kafka)
    found: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap}
    if kafka.security_protocol == "plaintext":
        return found
    found["security.protocol"] = kafka.security_protocol
    if uses_tls(kafka):
        tls_context(kafka)  # names the setting of an unusable file, which librdkafka does not
        found |= {
            "ssl.ca.location": kafka.ca_file,
            "ssl.certificate.location": kafka.client_cert_file,
            "ssl.key.location": kafka.client_key_file,
            "ssl.key.password": _secret(kafka.client_key_password),
        }
    if uses_sasl(kafka):
        found["sasl.mechanism"] = kafka.sasl_mechanism
    if uses_sasl(kafka) and kafka.sasl_mechanism == _OAUTH:
        found |= {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": kafka.oauth_token_url,
            "sasl.oauthbearer.client.id": kafka.oauth_client_id,
            "sasl.oauthbearer.client.secret": _secret(kafka.oauth_client_secret),
            "sasl.oauthbearer.scope": kafka.oauth_scope,
            "https.ca.location": kafka.oauth_ca_file,
        }
    elif uses_sasl(kafka):
        found |= {"sasl.username": kafka.username, "sasl.password": _secret(kafka.password)}
    return {name: str(value) for name, value in found.items() if value is not None}


def uses_tls(kafka: KafkaSettings) -> bool:
    """Return whether connections are encrypted."""
    return kafka.security_protocol.endswith("ssl")


def uses_sasl(kafka: KafkaSettings) -> bool:
    """Return whether the brokers authenticate this client by SASL."""
    return kafka.security_protocol.startswith("sasl")


def tls_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Return a context that verifies the brokers' names and certificates. Raises NotReady for an unusable file."""
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file)
    except (OSError, ValueError) as error:
        raise NotReady(f"DARKROOM_KAFKA__CA_FILE: {kafka.ca_file} is not a PEM file of CAs: {error}") from error
    if kafka.client_cert_file is not None and kafka.client_key_file is not None:
        try:
            # A function, so that OpenSSL never asks for the password of an encrypted key on the terminal.
            context.load_cert_chain(
                kafka.client_cert_file, kafka.client_key_file, lambda: _secret(kafka.client_key_password) or ""
            )
        except (OSError, ValueError) as error:
            raise NotReady(
                f"DARKROOM_KAFKA__CLIENT_CERT_FILE and DARKROOM_KAFKA__CLIENT_KEY_FILE: {kafka.client_cert_file} and "
                f"{kafka.client_key_file} are not a certificate and its private key, or "
                f"DARKROOM_KAFKA__CLIENT_KEY_PASSWORD does not decrypt the key: {error}"
            ) from error
    return context


def check_security(kafka: KafkaSettings) -> None:
    """Raise NotReady, naming all problems, for settings under which no client may connect."""
    if problems := list(security_problems(kafka)):
        raise NotReady("unsafe settings: " + "; ".join(problems))


def security_problems(kafka: KafkaSettings) -> Iterator[str]:
    """Yield a sentence for each contradiction: what is configured would not be used, or would be sent unprotected."""
    yield from _tls_problems(kafka)
    if not uses_sasl(kafka):
        given = ("sasl_mechanism", "username", "password", "oauth_token_url", "oauth_client_id", "oauth_client_secret")
        if unused := [_variable(name) for name in given if getattr(kafka, name) is not None]:
            yield (
                f"{', '.join(unused)} would not be used: DARKROOM_KAFKA__SECURITY_PROTOCOL is "
                f"{kafka.security_protocol}, not sasl_ssl"
            )
        return
    if kafka.sasl_mechanism is None:
        yield f"DARKROOM_KAFKA__SECURITY_PROTOCOL {kafka.security_protocol} needs DARKROOM_KAFKA__SASL_MECHANISM"
        return
    by_token = kafka.sasl_mechanism == _OAUTH
    needed = ("oauth_token_url", "oauth_client_id", "oauth_client_secret") if by_token else ("username", "password")
    if missing := [_variable(name) for name in needed if not _value(kafka, name)]:
        yield f"DARKROOM_KAFKA__SASL_MECHANISM {kafka.sasl_mechanism} needs {' and '.join(missing)}"
    if kafka.password_without_tls:
        return
    if kafka.sasl_mechanism in _BEARER_SECRETS and not uses_tls(kafka) and not _is_local(kafka.bootstrap):
        yield (
            f"DARKROOM_KAFKA__SASL_MECHANISM {kafka.sasl_mechanism} with sasl_plaintext sends a secret readable by "
            "others on the network: set DARKROOM_KAFKA__SECURITY_PROTOCOL to sasl_ssl, or "
            "DARKROOM_KAFKA__PASSWORD_WITHOUT_TLS to true"
        )
    url = urlsplit(kafka.oauth_token_url or "")
    if by_token and url.scheme == "http" and not _is_local(url.netloc):
        yield (
            "DARKROOM_KAFKA__OAUTH_TOKEN_URL without https sends the client secret readable by others on the network: "
            "use https, or set DARKROOM_KAFKA__PASSWORD_WITHOUT_TLS to true"
        )


def _tls_problems(kafka: KafkaSettings) -> Iterator[str]:
    files = ("ca_file", "client_cert_file", "client_key_file", "client_key_password")
    given = [_variable(name) for name in files if getattr(kafka, name) is not None]
    if given and not uses_tls(kafka):
        yield (
            f"{', '.join(given)} would not be used: DARKROOM_KAFKA__SECURITY_PROTOCOL is {kafka.security_protocol}, "
            "not ssl or sasl_ssl"
        )
    if kafka.client_cert_file is not None and kafka.client_key_file is None:
        yield "DARKROOM_KAFKA__CLIENT_CERT_FILE needs DARKROOM_KAFKA__CLIENT_KEY_FILE"
    if kafka.client_cert_file is None and (kafka.client_key_file or kafka.client_key_password) is not None:
        yield "DARKROOM_KAFKA__CLIENT_KEY_FILE needs DARKROOM_KAFKA__CLIENT_CERT_FILE"


def _is_local(addresses: str) -> bool:
    """Return whether every host of comma separated `host:port` is this machine's loopback."""
    hosts = [urlsplit(f"//{address.strip()}").hostname or "" for address in addresses.split(",")]
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _variable(name: str) -> str:
    return f"DARKROOM_KAFKA__{name.upper()}"


def _value(kafka: KafkaSettings, name: str) -> str | None:
    value = getattr(kafka, name)
    return value if value is None or isinstance(value, str) else _secret(value)


def _secret(value: Any) -> str | None:
    return None if value is None else value.get_secret_value()
