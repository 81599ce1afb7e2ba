"""Settings of who may: the keys tokens are signed with, and what is asked of a token. DARKROOM_AUTH__*."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from gateway.access.loopback import is_loopback
from streams.settings import Group


class Algorithm(StrEnum):
    """How a token may be signed."""

    HS256 = "HS256"
    RS256 = "RS256"
    EDDSA = "EdDSA"


class TokenKey(Group):
    """One key that checks tokens. Which algorithm it is for stands here, never in a token."""

    kid: str = Field(min_length=1, max_length=200, description="the `kid` in the header of the tokens it checks")
    algorithm: Algorithm = Field(description="HS256, RS256 or EdDSA")
    key: SecretStr | None = Field(None, description="a public key as PEM; for HS256 the secret, 32 bytes or more")
    file: Path | None = Field(None, description="a file that holds it")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.key is None) == (self.file is None):
            raise ValueError(f"give one of key and file for kid {self.kid}")
        return self


class AuthSettings(Group):
    """Who may use the gateway."""

    required: bool = Field(False, description="ask for credentials on a loopback address too, where anybody else may")
    keys: tuple[TokenKey, ...] = Field(
        (), description="keys that check JWTs, each `kid`, `algorithm` and `key` or `file`; several while they rotate"
    )
    jwks_url: str | None = Field(None, description="URL of a JWK set with more such keys: https, or on this machine")
    jwks_fresh_s: float = Field(300.0, gt=0, description="seconds after which the JWK set is fetched again")
    jwks_apart_s: float = Field(10.0, ge=0, description="seconds at least between two fetches, for an unknown kid too")
    jwks_stale_s: float = Field(3600.0, gt=0, description="seconds its keys are believed while it cannot be fetched")
    jwks_timeout_s: float = Field(5.0, gt=0, description="seconds a fetch may take")
    issuer: str | None = Field(None, description="`iss` of every token; needed with keys or a JWK set")
    audience: str | None = Field(None, description="what `aud` of every token names; needed with keys or a JWK set")
    leeway_s: float = Field(30.0, ge=0, le=300, description="seconds clocks may differ")
    owner_claim: str = Field("owner", min_length=1, description="the claim that names whose images a token opens")
    key_fresh_s: float = Field(3.0, gt=0, le=60, description="seconds after which a revoked API key opens nothing")

    @property
    def reads_tokens(self) -> bool:
        """Whether JWTs are taken at all."""
        return bool(self.keys) or self.jwks_url is not None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.reads_tokens and not (self.issuer and self.audience):
            raise ValueError("tokens need issuer and audience: another system's tokens must not open this one")
        kids = [key.kid for key in self.keys]
        if len(set(kids)) < len(kids):
            raise ValueError("two keys have one kid")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname or "")):
                raise ValueError("jwks_url must be https: whoever is between could sign anything")
        return self
