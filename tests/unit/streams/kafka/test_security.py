"""The security settings of Kafka clients: what each client library receives, and which settings are refused."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from infra.local.kafka_security import Secured
from streams.errors import NotReady
from streams.kafka.security import aiokafka_arguments, check_security, confluent_configuration
from streams.process.settings_checks import check_safe
from streams.runtime.faust_worker import broker_credentials
from streams.settings import KafkaSettings, Settings

SCRAM = {
    "security_protocol": "sasl_ssl",
    "sasl_mechanism": "SCRAM-SHA-512",
    "username": "sanitizer",
    "password": "a-secret",
}
OAUTH = {
    "security_protocol": "sasl_ssl",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_url": "https://login.example/token",
    "oauth_client_id": "sanitizer",
    "oauth_client_secret": "a-secret",
    "oauth_scope": "kafka",
}


def settings(**fields: Any) -> KafkaSettings:
    """Return settings of a broker on another machine."""
    return KafkaSettings.model_validate({"bootstrap": "kafka.example:9093", **fields})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    """Return a CA and the certificate of a client."""
    secured = Secured(tmp_path_factory.mktemp("certificates"), {"sanitizer": ""})
    secured.prepare()
    return secured


def mtls(certificates: Secured) -> dict[str, Any]:
    """Return the settings of a client that authenticates by its certificate."""
    certificate, key = certificates.client_files("sanitizer")
    return {
        "security_protocol": "ssl",
        "ca_file": certificates.ca_file,
        "client_cert_file": certificate,
        "client_key_file": key,
    }


def test_the_default_is_plaintext() -> None:
    """Without security settings no client library receives any."""
    assert aiokafka_arguments(settings()) == {
        "bootstrap_servers": "kafka.example:9093",
        "security_protocol": "PLAINTEXT",
    }
    assert confluent_configuration(settings()) == {"bootstrap.servers": "kafka.example:9093"}
    assert broker_credentials(settings()) is None


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_user_and_password_reach_every_client(mechanism: str) -> None:
    """User, password, mechanism and a verifying TLS context, for aiokafka, confluent-kafka and Faust."""
    own = settings(**{**SCRAM, "sasl_mechanism": mechanism})
    arguments = aiokafka_arguments(own)
    assert arguments["security_protocol"] == "SASL_SSL"
    assert (arguments["sasl_plain_username"], arguments["sasl_plain_password"]) == ("sanitizer", "a-secret")
    assert arguments["sasl_mechanism"] == mechanism
    assert arguments["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert arguments["ssl_context"].check_hostname
    assert confluent_configuration(own) == {
        "bootstrap.servers": "kafka.example:9093",
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": mechanism,
        "sasl.username": "sanitizer",
        "sasl.password": "a-secret",
    }
    faust = broker_credentials(own)
    assert isinstance(faust, SASLCredentials)
    expected = {name: value for name, value in arguments.items() if name not in ("bootstrap_servers", "ssl_context")}
    found = dict(credentials_to_aiokafka_auth(faust))
    assert isinstance(found.pop("ssl_context"), ssl.SSLContext)
    assert found == expected


def test_a_client_certificate_reaches_every_client(certificates: Secured) -> None:
    """CA, certificate and key, for aiokafka, confluent-kafka and Faust."""
    own = settings(**mtls(certificates))
    assert aiokafka_arguments(own)["security_protocol"] == "SSL"
    configuration = confluent_configuration(own)
    assert configuration["ssl.ca.location"] == str(certificates.ca_file)
    assert configuration["ssl.certificate.location"] == str(own.client_cert_file)
    assert configuration["ssl.key.location"] == str(own.client_key_file)
    AdminClient({**configuration, "log_level": 0})  # the library reads the files and knows every name
    assert isinstance(broker_credentials(own), SSLCredentials)


def test_an_oauth_client_reaches_every_client(certificates: Secured) -> None:
    """Token endpoint, client and scope, for aiokafka, confluent-kafka and Faust."""
    own = settings(**OAUTH, oauth_ca_file=certificates.ca_file)
    provider = aiokafka_arguments(own)["sasl_oauth_token_provider"]
    configuration = confluent_configuration(own)
    assert configuration["sasl.oauthbearer.token.endpoint.url"] == "https://login.example/token"
    assert configuration["sasl.oauthbearer.client.secret"] == "a-secret"
    AdminClient({**configuration, "log_level": 0})  # the library knows every name
    faust = broker_credentials(own)
    assert isinstance(faust, OAuthCredentials)
    assert type(credentials_to_aiokafka_auth(faust)["sasl_oauth_token_provider"]) is type(provider)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"password": "a-secret"}, "KAFKA__PASSWORD would not be used: DARKROOM_KAFKA__SECURITY_PROTOCOL is plaintext"),
        ({"security_protocol": "sasl_ssl", "password": "a-secret"}, "needs DARKROOM_KAFKA__SASL_MECHANISM"),
        ({**SCRAM, "password": None}, "SCRAM-SHA-512 needs DARKROOM_KAFKA__PASSWORD"),
        ({**SCRAM, "username": ""}, "SCRAM-SHA-512 needs DARKROOM_KAFKA__USERNAME"),
        ({**OAUTH, "oauth_token_url": None}, "OAUTHBEARER needs DARKROOM_KAFKA__OAUTH_TOKEN_URL"),
        ({"ca_file": "ca.pem"}, "DARKROOM_KAFKA__CA_FILE would not be used"),
        ({"security_protocol": "ssl", "client_cert_file": "a.crt"}, "needs DARKROOM_KAFKA__CLIENT_KEY_FILE"),
        ({"security_protocol": "ssl", "client_key_file": "a.key"}, "needs DARKROOM_KAFKA__CLIENT_CERT_FILE"),
        (
            {**SCRAM, "sasl_mechanism": "PLAIN", "security_protocol": "sasl_plaintext"},
            "PLAIN with sasl_plaintext sends a secret",
        ),
        ({**OAUTH, "security_protocol": "sasl_plaintext"}, "OAUTHBEARER with sasl_plaintext sends a secret"),
        ({**OAUTH, "oauth_token_url": "http://login.example/token"}, "OAUTH_TOKEN_URL without https"),
    ],
)
def test_unsafe_settings_are_refused_with_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    """A contradiction is named before any client connects, at the start of each process and by each client."""
    own = settings(**fields)
    for refused in (
        lambda: check_safe(Settings(kafka=own)),
        lambda: aiokafka_arguments(own),
        lambda: confluent_configuration(own),
        lambda: broker_credentials(own),
    ):
        with pytest.raises(NotReady, match=sentence) as error:
            refused()
        assert "a-secret" not in str(error.value)


def test_a_secret_may_go_to_this_machine_or_as_allowed() -> None:
    """PLAIN without TLS is used on the loopback address, or if the operator allows it; SCRAM sends no password."""
    plain = {**SCRAM, "security_protocol": "sasl_plaintext", "sasl_mechanism": "PLAIN"}
    check_security(settings(**plain, bootstrap="127.0.0.1:9092,localhost:9093,[::1]:9094"))
    check_security(settings(**plain, password_without_tls=True))
    check_security(settings(**{**plain, "sasl_mechanism": "SCRAM-SHA-256"}))
    with pytest.raises(NotReady, match="sends a secret"):
        check_security(settings(**plain, bootstrap="127.0.0.1:9092,kafka.example:9092"))


def test_an_unusable_file_is_named(certificates: Secured, tmp_path: Path) -> None:
    """A missing CA file, or a key of another certificate, is refused with the setting's name."""
    with pytest.raises(NotReady, match="DARKROOM_KAFKA__CA_FILE"):
        aiokafka_arguments(settings(security_protocol="ssl", ca_file=tmp_path / "none.pem"))
    _, other = certificates.client_files("broker")
    with pytest.raises(NotReady, match="DARKROOM_KAFKA__CLIENT_KEY_FILE"):
        confluent_configuration(settings(**{**mtls(certificates), "client_key_file": other}))


def test_secrets_are_not_shown() -> None:
    """Neither the settings in the log nor Faust's credentials contain a secret."""
    own = settings(**SCRAM, oauth_client_secret="a-secret", client_key_password="a-secret")
    shown = f"{own!r} {json.dumps(own.model_dump(mode='json'))} {broker_credentials(settings(**SCRAM))!r}"
    assert "a-secret" not in shown


def test_a_token_url_contains_no_credentials() -> None:
    """A URL with user and password, which would be logged, is refused."""
    with pytest.raises(ValueError, match="oauth_token_url"):
        settings(oauth_token_url="https://user:secret@login.example/token")
