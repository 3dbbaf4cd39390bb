"""What the page, the API and tests call: submit, follow, cancel, look up. Lives in rank 0's process, knows no torch;
what becomes of a request is the hub's business.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from distri_engine.bands import check_bands
from distri_engine.config import DistriConfig, check_size
from distri_engine.request import GenerationRequest
from launcher import logs
from launcher.events import Stop, Submitted
from launcher.hub_io import HubLoop
from launcher.job import FINAL, Job
from launcher.measure import Survey
from launcher.messages import Prepare
from launcher.schema import ModelInfo, Record, Refused, Status, Update, as_parameters, as_request
from launcher.surveyor import Surveyor
from launcher.wire import encode

_log = logging.getLogger(__name__)

MAX_WAITING = 20
HEARTBEAT_S = 1.0  # an unchanged state is repeated, so that a page that went away is noticed


class Client:
    """Thread-safe; any number of pages share one."""

    def __init__(self, loop: HubLoop) -> None:
        self._loop = loop
        self._surveyor = Surveyor()

    def submit(
        self,
        request: GenerationRequest,
        config: DistriConfig,
        *,
        visitor: str = "",
        comparison: str = "",
        plan: dict[str, Any] | None = None,
    ) -> str:
        """Accept a picture and return its id; it is in the journal then. Size and seed are resolved here. `plan`, why
        it is to be made this way, is handed on to its report.

        Raises ValueError for parameters that cannot work here, and Refused if nothing can be accepted now.
        """
        with self._loop.changed:
            status = self.status()
            if status.state == "dead":
                raise Refused(status.message)
            if status.model is None:
                raise Refused("The model is still loading on every device; try again in a moment")
            if status.queue >= MAX_WAITING:
                raise Refused(f"{status.queue} pictures are waiting already; try again when some are done")
            request = request.resolved(default_size=status.model.default_size)
            check_against(request, config, status.model, status.ranks)
            if request.image is not None:
                self._loop.journal.inputs.path(request.image)
            config = config.replace(height=request.height, width=request.width)
            job = Job(
                id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
                request=as_parameters(request),
                config=as_parameters(config),
                visitor=visitor,
                comparison=comparison,
                plan=plan,
            )
            encode(Prepare(req=job.id, request=job.request, config=job.config).frame())
            try:
                self._loop.journal.accepted(job)
            except OSError as error:
                raise Refused(f"Nothing can be accepted: {error.strerror or error}") from None
            with logs.about(job.id):
                _log.info("accepted: %d x %d, %d steps", request.width, request.height, request.steps)
            self._loop.feed(Submitted(job))
            return job.id

    def picture(self, text: str) -> AbstractContextManager[str]:
        """Keeps a picture to start from, a data URI or base64, for requests submitted meanwhile: as their `image`.

        Raises ValueError for what is no picture or too large, and Refused if it cannot be kept.
        """
        return self._loop.journal.inputs.kept(text)

    def updates(self, request_id: str, *, interval: float = 0.2) -> Iterator[Update]:
        """The request's state now, then as it changes, at most every `interval` seconds; ends after the final one.

        Any number of readers, at any time, also after a restart. Raises ValueError for an unknown id.
        """
        shown, due = None, 0.0
        while shown is None or not shown.final:
            with self._loop.changed:
                latest = self._snapshot(request_id)
                while latest == shown and time.monotonic() < due + HEARTBEAT_S:
                    self._loop.changed.wait(HEARTBEAT_S)
                    latest = self._snapshot(request_id)
                while not latest.final and (early := due - time.monotonic()) > 0:
                    self._loop.changed.wait(early)
                    latest = self._snapshot(request_id)
            yield latest
            shown, due = latest, time.monotonic() + interval

    def cancel(self, request_id: str) -> None:
        """Stop a queued or running request. Does nothing if it is unknown or over."""
        self._loop.feed(Stop(request_id))

    def status(self) -> Status:
        """The group at this moment."""
        with self._loop.changed:
            return self._loop.hub.status()

    def metrics(self) -> bytes:
        """What the group did, in Prometheus' text format."""
        return self._loop.metrics.text(self.status())

    def history(self, *, visitor: str | None = None, limit: int = 24) -> list[Record]:
        """Finished requests, newest first."""
        return self._loop.journal.history(visitor=visitor, limit=limit)

    def running(self, *, visitor: str) -> list[str]:
        """Ids that this visitor has waiting or running, oldest first."""
        with self._loop.changed:
            jobs = self._loop.hub.jobs.values()
            return [job.id for job in jobs if job.visitor == visitor and job.state not in FINAL]

    def survey(self) -> Survey | None:
        """What the planner must know of machine and model; None while it is being found out, in the background."""
        return self._surveyor.found(self.status())

    def wait_ready(self, timeout: float) -> bool:
        """Block until pictures can be made; False if that does not happen within `timeout` seconds."""
        waiting = ("boot", "joining", "rejoin")
        with self._loop.changed:
            self._loop.changed.wait_for(lambda: self._loop.hub.state not in waiting, timeout)
            return self._loop.hub.state not in (*waiting, "dead")

    def _snapshot(self, request_id: str) -> Update:
        try:
            return self._loop.hub.update(request_id)
        except KeyError:
            record = self._loop.journal.record(request_id)
        if record is None:
            raise ValueError(f"there is no request {request_id!r:.60}")
        return Update(
            id=record.id,
            state=record.state,
            message=record.message,
            steps=(steps := as_request(record.request).timesteps),
            step=steps if record.state == "done" else 0,
            picture=record.picture,
            pictures=(record.picture,) if record.picture else (),
            report=record.report,
            request=record.request,
            config=record.config,
        )


def check_against(request: GenerationRequest, config: DistriConfig, model: ModelInfo, ranks: int) -> None:
    """Raise ValueError if this model on `ranks` ranks cannot make this (resolved) picture."""
    assert request.height is not None
    assert request.width is not None
    check_size("height", request.height, model.size_multiple)
    check_size("width", request.width, model.size_multiple)
    if (pixels := request.height * request.width * request.images) > model.max_pixels:
        batch = f"{request.images} x " if request.images > 1 else ""
        raise ValueError(
            f"{batch}{request.width} x {request.height} is {pixels} pixels, the limit is {model.max_pixels}; "
            f"make it {'fewer or ' * bool(batch)}smaller"
        )
    check_bands(request, config, ranks, model.size_multiple)
