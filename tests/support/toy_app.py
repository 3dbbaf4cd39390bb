"""The program that tests start instead of app.py: the same launcher with the toy engine, and instead of a page a small
HTTP server that calls the client.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from launcher import rank, start  # noqa: E402 - torchrun starts this file by its path
from launcher.client import Client  # noqa: E402
from launcher.schema import Refused, as_config, as_request  # noqa: E402


def serve(client: Client, options: start.Options) -> None:
    first = os.environ.get("TOY_PAGE_ERROR")
    if first and not Path(first).exists():
        Path(first).touch()
        raise OSError("no page at the first start")

    def follow(req: str, states: list[str]) -> Any:
        for update in client.updates(req, interval=0.02):
            if not states or states[-1] != update.state:
                states.append(update.state)
        return update

    def submit(request: dict[str, Any], config: dict[str, Any], visitor: str) -> str:
        return client.submit(as_request(request), as_config(config), visitor=visitor)

    def wait(req: str) -> dict[str, Any]:
        states: list[str] = []
        return {**dataclasses.asdict(follow(req, states)), "states": states}

    calls = {
        "submit": submit,
        "wait": wait,
        "now": lambda req: dataclasses.asdict(next(client.updates(req))),
        "cancel": lambda req: client.cancel(req),
        "status": lambda: dataclasses.asdict(client.status()),
        "history": lambda visitor: [dataclasses.asdict(one) for one in client.history(visitor=visitor)],
        "running": lambda visitor: client.running(visitor=visitor),
        "ready": lambda: client.wait_ready(60),
        "pids": lambda: {rank: hello.pid for rank, hello in client._loop.hub.roster.hellos.items()},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name, arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                answer = {"result": calls[name](**arguments)}
            except (ValueError, Refused) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((options.host, options.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def make_engine(model: str, device: str, rank: int, world_size: int, text_encoder_on: str) -> Any:
    from tests.support.toy import ToyEngine

    return ToyEngine(model, device, rank, world_size)


if __name__ == "__main__":
    options = start.parse(sys.argv[1:])
    if start.in_group():
        timeout = os.environ.get("TOY_GROUP_TIMEOUT")
        seconds = timedelta(seconds=float(timeout)) if timeout else None
        modules = ("launcher.group", "tests.support.toy")
        rank.main(options, serve=serve, make_engine=make_engine, modules=modules, group_timeout=seconds)
    else:
        start.main(options, script=__file__)
