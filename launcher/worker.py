"""A rank's two threads: the control thread owns the socket to the hub, the main thread runs the engine and is the only
one that touches torch.distributed or the device. Deciding what they do is the hub's business.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from distri_engine.config import DistriConfig
from distri_engine.errors import EngineError
from distri_engine.request import GenerationRequest
from distri_engine.telemetry import Event, Finished, Prepared, StepDone
from launcher import logs, png, wire
from launcher import messages as m
from launcher.events import Previewed
from launcher.faults import Faults
from launcher.hub_io import HubLoop
from launcher.lease import Lease
from launcher.losses import EXIT_LOST, check_starts, note_loss, note_start
from launcher.options import Options, resolve
from launcher.preview import Previewer
from launcher.process import MakeEngine, freeze_garbage_collector, reason
from launcher.schema import as_config, as_request
from launcher.start import Place

if TYPE_CHECKING:
    from distri_engine.engine import Engine


_log = logging.getLogger(__name__)


class Worker:
    """The two threads of a rank. Only `run`'s thread touches torch.distributed and the device."""

    def __init__(self, place: Place, sock: socket.socket, loop: HubLoop | None, timeout: timedelta | None) -> None:
        self._place = place
        self._sock = sock
        self._loop = loop
        self._timeout = timeout
        self._faults = Faults(place.rank, place.run_dir, sock)
        self._inbox: queue.SimpleQueue[m.Join | m.Rest | tuple[m.Prepare, Lease]] = queue.SimpleQueue()
        self._lease = Lease()
        self._previews: Previewer | None = None
        self._about = {"model": "", "device": ""}  # what pictures say of their making
        threading.Thread(target=self._control, name="control", daemon=True).start()

    # --- control thread ---

    def _control(self) -> None:
        try:
            while (frame := wire.receive(self._sock)) is not None:
                self._obey(m.parse(frame, m.TO_RANK))
        except (ValueError, OSError) as error:
            _log.error("rank %d: the hub sent a bad frame: %s", self._place.rank, error)
        note_loss(self._place.run_dir, self._place.restarts, "rank 0 stopped answering")
        os._exit(EXIT_LOST)

    def _obey(self, message: m.Message) -> None:
        match message:
            case m.Join():
                self._lease.revoke()
                self._inbox.put(message)
            case m.Rest():
                self._inbox.put(message)
            case m.Prepare(req=req):
                with logs.about(req):
                    _log.info("was told")
                self._lease = Lease()
                self._inbox.put((message, self._lease))
            case m.Run(upto=upto) | m.Lease(upto=upto):
                self._lease.extend(upto)
            case m.Cancel(final=final):
                self._lease.finish(final)

    # --- main thread ---

    def run(self, options: Options, make_engine: MakeEngine) -> NoReturn:
        """Load the weights, then do what the hub says. Idle waiting is this queue: no polling, no collective."""
        place = self._place
        try:
            check_starts(place.run_dir, place.restarts)
            _, device, model = resolve(place.world_size, options.device, options.model)
            engine = make_engine(model, device, place.rank, place.world_size, options.text_encoder_on)
        except Exception as error:
            self._log(error)
            self._say(self._hello(error=reason(error)))
            threading.Event().wait()  # the page says why; starting again would end the same way
        if self._loop is not None:
            feed = self._loop.feed
            self._previews = Previewer(engine.preview, lambda req, uri: feed(Previewed(req, uri)))
        self._about = {"model": engine.info.name, "device": engine.info.device}
        freeze_garbage_collector()
        self._introduce(engine, device)
        _log.info("has loaded %s", engine.info.name)
        while True:
            order = self._inbox.get()
            match order:
                case m.Join(gen=gen):
                    self._join(engine, gen, device)
                case m.Rest():
                    self._leave(engine)
                case _:
                    with logs.about(order[0].req):
                        self._make(engine, *order)

    def _introduce(self, engine: Engine, device: str) -> None:
        import torch

        from distri_engine.mesh import backend_for, resolve_device

        info = engine.info
        self._say(
            self._hello(
                torch=torch.__version__,
                threads=torch.get_num_threads(),
                device=info.device,
                device_kind=device,
                backend=backend_for(resolve_device(device)),
                model=info.name,
                path=info.path,
                demo=info.demo,
                default_size=info.default_size,
                size_multiple=info.size_multiple,
                max_pixels=info.max_pixels,
            )
        )

    def _join(self, engine: Engine, generation: str, device: str) -> None:
        from distri_engine.mesh import resolve_device
        from launcher import group

        engine.detach()
        place = self._place
        engine.attach(
            group.join(
                generation,
                place.run_dir,
                rank=place.rank,
                world_size=place.world_size,
                device=resolve_device(device),
                timeout=self._timeout or group.TIMEOUT,
            )
        )
        if place.rank == 0:
            note_start(place.run_dir, place.restarts)
        _log.info("in group %s", generation)
        self._say(m.Ready(gen=generation))

    def _make(self, engine: Engine, order: m.Prepare, lease: Lease) -> None:
        """One picture, from PREPARE to ENDED."""
        try:
            request, config = as_request(order.request), as_config(order.config)
            events = engine.generate(self._with_file(request), config)
            ready = next(events)
            assert isinstance(ready, Prepared)
            self._faults.strike(-1)
            prepared = m.Prepared(req=order.req, ok=True, memory_mb=ready.memory_mb, box=ready.box, branch=ready.branch)
        except Exception as error:
            self._log(error)
            self._say(m.Prepared(req=order.req, ok=False, error=reason(error)))
            return
        self._say(prepared)
        ended = self._steps(events, order.req, request, config, lease)
        _log.info("%s after step %d", ended.why, ended.step)
        # Said before leaving, so that the hub hears of an error before the peers whom leaving will wake.
        self._say(ended)
        if ended.why == "error":
            self._leave(engine)

    def _with_file(self, request: GenerationRequest) -> GenerationRequest:
        """On rank 0, which alone has it, the picture to start from by the name of its file."""
        if request.image is None or self._loop is None:
            return request
        return request.replace(image=str(self._loop.journal.inputs.path(request.image)))

    def _steps(
        self, events: Iterator[Event], req: str, request: GenerationRequest, config: DistriConfig, lease: Lease
    ) -> m.Ended:
        """Run the picture's steps as the lease allows, and say how that ended."""
        step, upcoming = -1, 0
        try:
            while lease.may_start(upcoming):
                if step < 0:
                    _log.info("its first step begins")
                event = next(events)
                if isinstance(event, Finished):
                    return self._finish(event, req, request, config, step)
                assert isinstance(event, StepDone)
                step = event.step
                # The decode has one number, however few steps came before it: nobody gets it before all need it.
                upcoming = event.steps if event.converged == event.steps else step + 1
                self._report(event, req)
                self._faults.strike(step)
            if not lease.revoked:
                events.close()  # type: ignore[attr-defined]
                return m.Ended(req=req, why="cancelled", step=step)
            why = "left its group because a peer failed"
        except Exception as error:
            if not lease.revoked:
                self._log(error)
            why = reason(error)
        finally:
            if self._previews is not None:
                self._previews.clear()
        return m.Ended(req=req, why="error", step=step, error=why, at=time.time())

    def _report(self, event: StepDone, req: str) -> None:
        if self._previews is not None:
            self._previews.offer(req, event.step, event.latents)
        self._say(
            m.Step(
                req=req,
                step=event.step,
                converged=event.converged,
                evaluations=event.evaluations,
                phase=event.phase,
                compute_ms=event.compute_ms,
                wait_ms=event.wait_ms,
                sent_bytes=event.sent_bytes,
                memory_mb=event.memory_mb,
                buffer_mb=event.buffer_mb,
                load=event.load,
                change=event.change,
            )
        )

    def _finish(
        self, event: Finished, req: str, request: GenerationRequest, config: DistriConfig, last: int
    ) -> m.Ended:
        if self._loop is None:
            return m.Ended(req=req, why="done", step=last)
        begin = time.perf_counter()
        chunks = png.chunks(request, config, **self._about, ranks=self._place.world_size)
        folder = self._loop.journal.folder / png.PICTURES
        folder.mkdir(mode=0o700, exist_ok=True)
        paths = png.save_all(event.images, folder / f"{req}.png", chunks)
        seconds = {**event.seconds, "save": time.perf_counter() - begin}
        return m.Ended(req=req, why="done", step=last, pictures=tuple(map(str, paths)), seconds=seconds)

    def _leave(self, engine: Engine) -> None:
        """Let go of the group and of all that refers to it: that is what wakes peers in a collective."""
        from launcher import group

        engine.detach()
        group.leave()

    def _hello(self, **about: Any) -> m.Hello:
        place = self._place
        return m.Hello(proto=m.PROTOCOL, rank=place.rank, world=place.world_size, pid=os.getpid(), **about)

    def _say(self, message: m.Message) -> None:
        try:
            wire.send(self._sock, message.frame())
        except OSError:
            os._exit(EXIT_LOST)  # the hub is gone, and the group with it

    def _log(self, error: Exception) -> None:
        known = isinstance(error, (ValueError, EngineError))
        _log.log(logging.INFO if known else logging.ERROR, "%s", reason(error), exc_info=None if known else error)
