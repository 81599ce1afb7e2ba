"""Settings of authentication, DARKROOM_AUTH__*: the keys that verify tokens, and the claims a token must have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from gateway.access.loopback import is_loopback
from streams.settings import Group


class Algorithm(StrEnum):
    """Signature algorithms of tokens."""

    HS256 = "HS256"
    RS256 = "RS256"
    EDDSA = "EdDSA"


class TokenKey(Group):
    """One key that verifies tokens. Its algorithm comes from here, never from a token."""

    kid: str = Field(min_length=1, max_length=200, description="the `kid` in the header of the tokens it verifies")
    algorithm: Algorithm = Field(description="HS256, RS256 or EdDSA")
    key: SecretStr | None = Field(None, description="a public key as PEM; for HS256 the secret, 32 bytes or more")
    file: Path | None = Field(None, description="a file with the key")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.key is None) == (self.file is None):
            raise ValueError(f"kid {self.kid} needs exactly one of key and file")
        return self


class AuthSettings(Group):
    """Which credentials the gateway accepts and requires."""

    required: bool = Field(False, description="require credentials on a loopback address too")
    keys: tuple[TokenKey, ...] = Field(
        (), description="keys that verify JWTs, each `kid`, `algorithm` and `key` or `file`; several during a rotation"
    )
    jwks_url: str | None = Field(None, description="URL of a JWK set with more keys: https, or a loopback address")
    jwks_fresh_s: float = Field(300.0, gt=0, description="seconds after which the JWK set is fetched again")
    jwks_apart_s: float = Field(10.0, ge=0, description="minimum seconds between two fetches, for an unknown kid too")
    jwks_stale_s: float = Field(3600.0, gt=0, description="seconds its keys stay valid while it cannot be fetched")
    jwks_timeout_s: float = Field(5.0, gt=0, description="seconds a fetch may take")
    issuer: str | None = Field(None, description="required `iss` of every token; needed with keys or a JWK set")
    audience: str | None = Field(None, description="required `aud` of every token; needed with keys or a JWK set")
    leeway_s: float = Field(30.0, ge=0, le=300, description="allowed clock skew in seconds")
    owner_claim: str = Field("owner", min_length=1, description="the claim with the owner a token acts for")
    key_fresh_s: float = Field(3.0, gt=0, le=60, description="seconds until a revoked API key is rejected")

    @property
    def reads_tokens(self) -> bool:
        """Whether JWTs are accepted."""
        return bool(self.keys) or self.jwks_url is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reads_tokens and not (self.issuer and self.audience):
            raise ValueError("JWTs need issuer and audience: tokens of another system must be rejected")
        kids = [key.kid for key in self.keys]
        if len(set(kids)) < len(kids):
            raise ValueError("two keys have the same kid")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname or "")):
                raise ValueError("jwks_url must be https, unless its host is a loopback address")
        return self
