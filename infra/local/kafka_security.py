"""TLS, users and ACLs of a local Kafka: what a secured cluster has, for tests and trials on this machine."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.local import ports

_VALID = datetime.timedelta(days=30)
_SECURITY = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class Secured:
    """A listener with SASL_SSL and one with mTLS, next to the internal one without security.

    Requests of the internal listener are those of a super user: it listens on the loopback address only. All others
    need ACLs. `users` are names and passwords, for PLAIN and SCRAM. OAUTHBEARER accepts unsigned tokens.
    """

    folder: Path
    users: Mapping[str, str] = field(default_factory=dict)

    @property
    def ca_file(self) -> Path:
        """The PEM file of the CA that signs all certificates."""
        return self.folder / "ca.pem"

    def client_files(self, name: str) -> tuple[Path, Path]:
        """Return the PEM files of the certificate and the key of a client; `prepare` makes those of every user."""
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def prepare(self) -> None:
        """Write the CA, the broker's store, and a certificate for each user, unless they exist."""
        if self.ca_file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _certificate("Local test CA", ca_key, None)
        for name in ("broker", *self.users):
            key = ec.generate_private_key(ec.SECP256R1())
            pem = _certificate(name, key, (ca, ca_key)).public_bytes(serialization.Encoding.PEM)
            certificate_file, key_file = self.client_files(name)
            certificate_file.write_bytes(pem)
            key_file.write_bytes(_pem_of(key))
            if name == "broker":
                (self.folder / "broker.pem").write_bytes(_pem_of(key) + pem)
        self.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))

    def format_arguments(self) -> list[str]:
        """Return the arguments of `kafka-storage format` that create the SCRAM users."""
        return [
            argument
            for name, password in self.users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for argument in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]

    def properties(self, host: str, internal: int, controller: int, sasl: int, mtls: int) -> dict[str, str]:
        """Return the settings of a broker whose listeners have these ports."""
        passwords = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        own = "listener.name.sasl_ssl."
        return {
            "listeners": (
                f"PLAINTEXT://{host}:{internal},SASL_SSL://{host}:{sasl},SSL://{host}:{mtls},"
                f"CONTROLLER://{host}:{controller}"
            ),
            "advertised.listeners": f"PLAINTEXT://{host}:{internal},SASL_SSL://{host}:{sasl},SSL://{host}:{mtls}",
            "listener.security.protocol.map": ("PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT"),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
            "listener.name.ssl.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            f"{own}sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"{own}plain.sasl.jaas.config": f"{_SECURITY}.plain.PlainLoginModule required {passwords};",
            f"{own}scram-sha-256.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
            f"{own}scram-sha-512.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
            f"{own}oauthbearer.sasl.jaas.config": (
                f'{_SECURITY}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
            ),
            f"{own}oauthbearer.sasl.server.callback.handler.class": (
                f"{_SECURITY}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
            ),
            f"{own}oauthbearer.sasl.login.callback.handler.class": (
                f"{_SECURITY}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredLoginCallbackHandler"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> x509.Certificate:
    """Return a certificate for this machine's loopback address; without an issuer, that of a CA."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signing_key = key if issuer is None else issuer[1]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    if issuer is not None:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(ports.HOST))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
