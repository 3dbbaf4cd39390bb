"""Many pictures at once: a Ray Serve deployment each replica of which is one group of ranks, started by our launcher
and ended with the replica. How a picture is made is the group's business, which replica makes it that of Serve.

Ray is optional: `pip install -r requirements-ray.txt`. A group never spans replicas or machines, and a machine may hold
several.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.batch import Failed, last_line, start_logged
from launcher.options import Options, resolve

if TYPE_CHECKING:
    from ray.serve import Application

ROOT = Path(__file__).parents[1]
START_S = 1800.0  # the weights may have to be fetched
END_S = 10.0  # torchrun gives its ranks 3 s to end
_PORTS = 3  # that somebody else may take between our choice and the page's start


class Gang:
    """One group of ranks behind a page on a port of loopback, with a journal of its own: `python app.py`."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it and wait until it could make a picture. Raises Failed with the reason if it never can.

        `arguments` are those of app.py, without host and port.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="distri-gang-")
        try:
            for _ in range(_PORTS):
                self._start(arguments)
                if self._comes_up():
                    return
            raise Failed(f"the group ended: {last_line(self._log) or self._process.returncode}")
        except BaseException:
            self.close()
            raise

    def _start(self, arguments: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._log = Path(self._folder.name, "log")
        command = [sys.executable, str(ROOT / "app.py"), *arguments, "--host", "127.0.0.1", "--port", str(self._port)]
        env = {**os.environ, "DISTRI_DATA": str(Path(self._folder.name, "data"))}
        self._process = start_logged(command, env, self._log)

    def _comes_up(self) -> bool:
        """False if it ended, as it does if its port is taken."""
        end = time.monotonic() + START_S
        while self._process.poll() is None:
            with contextlib.suppress(Failed):
                self.check()
                return True
            if time.monotonic() > end:
                raise Failed(f"the group did not start in {START_S:.0f} s")
            time.sleep(0.2)
        return False

    @property
    def pid(self) -> int:
        """The process id of its torchrun agent, whose death ends them all."""
        return self._process.pid

    def check(self) -> None:
        """Raise Failed if no picture could be made now."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/healthz", timeout=10).close()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the group does not answer: {error}") from None

    def alive(self) -> bool:
        """Whether its agent runs; a group that lost a rank comes back by itself."""
        return self._process.poll() is None

    def generate(self, parameters: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """One picture by the page's `/generate`: the PNG file and the report. Raises ValueError with what is wrong."""
        from gradio_client import Client
        from gradio_client.exceptions import AppError

        with tempfile.TemporaryDirectory(dir=self._folder.name) as downloads:
            client = Client(f"http://127.0.0.1:{self._port}", verbose=False, download_files=downloads)
            try:
                picture, report = client.predict(**parameters, api_name="/generate")
            except (AppError, TypeError) as error:
                raise ValueError(str(error)) from None
            return Path(picture).read_bytes(), report

    def close(self) -> None:
        """End it, and all its processes."""
        if hasattr(self, "_process"):
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except Exception:
                self._process.kill()  # its ranks die with it
                self._process.wait()
        self._folder.cleanup()


class Replica:
    """What Serve holds several of. Over HTTP: POST a JSON object of `/generate`'s parameters, get a PNG file."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._gang = Gang(arguments)

    def generate(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """For handles: `{"png": bytes, "report": dict, "gang": process id}`. Raises ValueError with what is wrong."""
        png, report = self._gang.generate(parameters)
        return {"png": png, "report": report, "gang": self._gang.pid}

    async def __call__(self, request: Any) -> Any:
        """For HTTP: 200 with the file, or 400 with a sentence."""
        import asyncio

        from starlette.responses import Response

        try:
            parameters = await request.json()
            if not isinstance(parameters, dict):
                raise ValueError('send a JSON object such as {"prompt": "a red house"}')
            made = await asyncio.to_thread(self.generate, parameters)
        except ValueError as error:
            return Response(f"{error}\n", status_code=400, media_type="text/plain")
        return Response(made["png"], media_type="image/png", headers={"X-Gang": str(made["gang"])})

    def check_health(self) -> None:
        """Serve asks this, and replaces the replica if it raises. A group that restarts is no reason."""
        if not self._gang.alive():
            raise Failed("the group has ended")

    def __del__(self) -> None:
        if hasattr(self, "_gang"):
            self._gang.close()


def build(
    replicas: int = 2,
    *,
    ranks: int | None = None,
    device: str = "auto",
    model: str | None = None,
    cpus: float | None = None,
) -> Application:
    """The application for `serve.run`: `replicas` groups of `ranks` processes each, requests to whoever is free.

    `cpus` is what Ray reckons for a replica, by default one a rank; of GPUs it gets one a rank, all on one machine.
    Raises ValueError for what app.py would refuse, and ImportError without Ray.
    """
    from ray import serve

    if replicas < 1:
        raise ValueError(f"{replicas} replicas are out of range; give a number from 1")
    ranks, device, model = resolve(ranks, device, model)
    arguments = Options(ranks=ranks, device=device, model=model).arguments()
    del arguments[arguments.index("--host") : arguments.index("--port") + 2]
    deployment = serve.deployment(
        name="distrifusion",
        num_replicas=replicas,
        max_ongoing_requests=1,  # a group makes one picture at a time; who waits is to wait for whoever is free first
        graceful_shutdown_timeout_s=2 * END_S,
        ray_actor_options={
            "num_cpus": ranks if cpus is None else cpus,
            "num_gpus": ranks if device == "cuda" else 0,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},  # the same folder on every machine
        },
    )(Replica)
    return deployment.bind(arguments)


def app(arguments: dict[str, str]) -> Application:
    """For Ray's own command: `serve run launcher.ray_serve:app replicas=4 ranks=2 device=cuda`."""
    kinds = {"replicas": int, "ranks": int, "device": str, "model": str, "cpus": float}
    if unknown := sorted(arguments.keys() - kinds.keys()):
        raise ValueError(f"unknown option {unknown[0]!r}; there are: {', '.join(kinds)}")
    return build(**{name: kinds[name](value) for name, value in arguments.items()})
