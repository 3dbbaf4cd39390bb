"""What machines ask the page's server: /healthz for whoever restarts or balances, /metrics for Prometheus. Plain
functions from the client to an answer's parts; their addresses are routes.py's.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from typing import Any

from launcher.client import Client
from launcher.web.header import mood

Answer = dict[str, Any]  # the arguments of a response: content, status_code, media_type, headers


def healthz(client: Client) -> Answer:
    """{"state", "last_step_age", "restarts", "queue"}: 200 if a picture could be made, 503 otherwise. Open to all: it
    says no more than the page's head.
    """
    now = client.status()
    state = mood(now)
    about = {"state": state, "last_step_age": now.last_step_age, "restarts": now.restarts, "queue": now.queue}
    return {
        "content": json.dumps(about),
        "status_code": 200 if state in ("ready", "busy") else 503,
        "media_type": "application/json",
        "headers": {"Cache-Control": "no-store"},
    }


def metrics(client: Client, authorization: str, auth: tuple[str, str] | None) -> Answer:
    """The metrics; if the page asks for a name and a password, then for those, as HTTP Basic in `authorization`."""
    if auth is not None and not _knows(authorization, auth):
        headers = {"WWW-Authenticate": 'Basic realm="DistriFusion Live"'}
        return {"content": "the page's name and password are needed\n", "status_code": 401, "headers": headers}
    return {"content": client.metrics(), "media_type": "text/plain; version=0.0.4; charset=utf-8"}


def _knows(authorization: str, auth: tuple[str, str]) -> bool:
    scheme, _, word = authorization.partition(" ")
    try:
        given = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and secrets.compare_digest(given, ":".join(auth).encode())
