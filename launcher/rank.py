"""What a rank process is: a worker for the hub, and on rank 0 also the hub itself and the page. Starting ranks is the
business of torchrun and zygote.py, what they do that of worker.py.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NoReturn

import psutil

from launcher import logs, wire, zygote
from launcher.client import Client
from launcher.files import sweep
from launcher.hub import Hub
from launcher.hub_io import HubLoop
from launcher.journal import REMEMBERED, Journal, data_folder
from launcher.losses import EXIT_LOST, die_noted, last_loss, note_loss
from launcher.options import Options
from launcher.png import PICTURES
from launcher.process import MakeEngine, die_with_agent, load_engine, parent_of, reason
from launcher.prometheus import Metrics
from launcher.pulse import Pulse
from launcher.start import Place, quiet_environment
from launcher.worker import Worker

CONNECT_S = 120.0  # rank 0 may be slow to come up on a busy machine
ENGINE = ("distri_engine.engine", "launcher.group")  # what takes seconds to import, for the zygote

_log = logging.getLogger(__name__)

Serve = Callable[[Client, Options], None]


def main(
    options: Options,
    *,
    serve: Serve | None = None,
    make_engine: MakeEngine = load_engine,
    modules: Sequence[str] = ENGINE,
    page_modules: Sequence[str] = (),
    group_timeout: timedelta | None = None,
) -> NoReturn:
    """Be the zygote of one rank, and the rank in every process that it forks. `serve` opens the page on rank 0, before
    the weights are loaded. `modules` are imported once, and `page_modules` where the page is.
    """
    die_with_agent()
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports
    os.environ.update(quiet_environment(os.environ))
    place = Place.here()
    logs.keep(place.run_dir, f"zygote-{place.rank}")

    def be_rank(place: Place, pulse: Pulse) -> None:
        started = time.monotonic() if place.restarts else began
        _live(place, options, serve, make_engine, group_timeout, started, pulse)

    zygote.main(place, be_rank, [*modules, *(page_modules if place.rank == 0 else ())])


def _live(
    place: Place,
    options: Options,
    serve: Serve | None,
    make_engine: MakeEngine,
    group_timeout: timedelta | None,
    started: float,
    pulse: Pulse,
) -> NoReturn:
    logs.keep(place.run_dir, f"rank-{place.rank}")
    _log.info("begins, generation %d", place.restarts)
    try:
        loop = _serve(place, options, serve, started, pulse) if place.rank == 0 else None
        sock = wire.connect(place.run_dir / "hub", CONNECT_S)
        Worker(place, sock, loop, group_timeout).run(options, make_engine)
    except Exception as error:
        # Not by leaving: threads of a page would keep a process alive that no longer works for the group.
        _log.exception("rank %d failed", place.rank)
        note_loss(place.run_dir, place.restarts, f"rank {place.rank} failed: {reason(error)}")
        os._exit(EXIT_LOST)


def _serve(place: Place, options: Options, serve: Serve | None, started: float, pulse: Pulse) -> HubLoop:
    """Start the hub and the page: they are there while the weights are loaded."""
    if place.restarts:
        _log.warning("%s; the workers are restarting (%d)", _last_error(place), place.restarts)
    elif not place.guarded:
        _log.warning("plain torchrun's rendezvous listens on all interfaces; python app.py keeps to 127.0.0.1")
    loop = _start_hub(place, started, pulse)
    if serve is not None:
        serve(Client(loop), options)
        if not place.restarts:
            print(f"DistriFusion Live: http://{options.host}:{options.port} ({place.world_size} ranks)", flush=True)
    return loop


def _start_hub(place: Place, started: float, pulse: Pulse) -> HubLoop:
    listener = wire.listen(place.run_dir / "hub")
    journal = Journal(data_folder())
    if journal.fault is None:
        sweep(journal.folder / PICTURES)  # what a predecessor was killed over
    hub = Hub(
        world=place.world_size,
        nonce=os.urandom(6).hex(),
        backlog=journal.recover(),
        started=started,
        restarts=place.restarts,
        last_error=_last_error(place),
    )
    since = psutil.Process(parent_of(os.getppid())).create_time()  # torchrun's, which outlives generations
    metrics = Metrics(record for record in journal.history(limit=REMEMBERED) if record.finished >= since)
    die = die_noted(place.run_dir, place.restarts)
    loop = HubLoop(hub, journal, listener, die=die, metrics=metrics, beat=pulse.beat)
    loop.start()
    return loop


def _last_error(place: Place) -> str:
    """Why the group was started again; empty at its first start."""
    return (last_loss(place.run_dir, place.restarts) or "a rank failed") if place.restarts else ""
