"""Who may use a server: a bearer token, which is required as soon as others than this machine can reach it."""

import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusal import Refusal
from .refusal_response import refusal_response

VARIABLE = "DIFFAD_TOKEN"
SHORTEST = 16  # characters
# What load balancers and browsers ask without a token; none of it says anything about parts.
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of a file, or without one of the variable `DIFFAD_TOKEN`; None if there is neither.

    Raises:
        OSError: if the file can't be read.
        ValueError: if the token is shorter than 16 characters, or holds others than visible ASCII.
    """
    if file is None and VARIABLE not in environment:
        return None
    source = VARIABLE if file is None else str(file)
    token = environment[VARIABLE] if file is None else file.read_text(encoding="utf-8").strip()
    if len(token) < SHORTEST or not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"{source}: a token is at least {SHORTEST} letters, digits and signs without spaces; make one with: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(host: str, token: str | None) -> None:
    """Raises ValueError if others could use a server without a token."""
    if token is None and not is_loopback(host):
        raise ValueError(
            f"--host {host}: others than this machine can reach it, which needs a token: name a file with --token-file, or set "
            f"{VARIABLE}"
        )


class BearerToken:
    """ASGI middleware that answers requests without the token with 401, before their body is read.

    Args:
        app: to protect.
        token: that the header `Authorization: Bearer TOKEN` must hold.
    """

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            sent = Headers(scope=scope).get("authorization", "").encode("latin-1", errors="replace")
            if not hmac.compare_digest(sent, self.expected):
                answer = refusal_response(Refusal(401, "the header Authorization: Bearer TOKEN is missing or wrong"))
                answer.headers["WWW-Authenticate"] = "Bearer"
                return await answer(scope, receive, send)
        return await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or path.startswith("/docs/")


class OwnNames:
    """ASGI middleware that answers requests with 400 that ask for another name than one of this machine for itself.

    A page that is visited elsewhere can make its own name lead here; its scripts could then read the answers.

    Args:
        app: to protect.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if not is_loopback(_without_port(host)):
                reason = f"this server is asked for as localhost, not as {host or 'nothing'}; a token lets it have other names"
                return await refusal_response(Refusal(400, reason))(scope, receive, send)
        return await self.app(scope, receive, send)


def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that don't match
        return ""
