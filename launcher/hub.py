"""The state of the group and of every request as a pure state machine: events in, actions out. It reads no clock and
does no I/O, so that any order of events can be tried in a test; hub_io.py connects it to the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from launcher import messages as m
from launcher.events import Action, Die, Event, Heard, Lost, Previewed, Send, Stop, Submitted, Tick, Write
from launcher.job import FINAL, MAX_ATTEMPTS, Job
from launcher.lease import grant
from launcher.schema import ModelInfo, Status, Update

KEPT = 64  # finished requests that can still be followed with all their figures
START_S = 120.0  # a picture's first step may allocate and warm up
JOIN_S = 60.0
REST_S = 2.0  # idle time after which gloo groups are left: their threads poll 100 times a second, joining takes 10 ms
WORDS = {
    "boot": "Loading the model on every device. You can write your prompt now.",
    "joining": "The devices are joining their group.",
    "rejoin": "The devices are joining their group again.",
    "idle": "Ready when you are",
}
STOPPED = "Stopped at step {step}. Your prompt and seed are kept."
TWICE = "the group died twice while running this"
LOST = "A device was lost: {reason}. The workers are restarting; your picture is queued again."


class Hub:
    """One group of `world` ranks and the requests it works on, one at a time. `nonce` makes generation names unique."""

    def __init__(
        self,
        *,
        world: int,
        nonce: str,
        backlog: Sequence[Job] = (),
        started: float = 0.0,
        restarts: int = 0,
        last_error: str = "",
    ) -> None:
        self.world = world
        self.state = "boot"
        self.jobs: dict[str, Job] = {}
        self.queue: deque[Job] = deque()
        self.current: Job | None = None
        self.hellos: dict[int, m.Hello] = {}
        self.startup_seconds = 0.0
        self.restarts = restarts
        self.last_error = last_error
        self._nonce = nonce
        self._generation = 0
        self._resting = False
        self._ready: set[int] = set()
        self._started = started
        self._heard = started
        self._now = started
        self._out: list[Action] = []
        for job in backlog:
            self.jobs[job.id] = job
            self.queue.append(job)
            if job.attempts:
                job.state, job.message = "lost", LOST.format(reason=last_error or "a rank stopped answering")

    # --- what the page asks ---

    def update(self, req: str) -> Update:
        """The state of one request. KeyError if it is unknown or long finished."""
        job = self.jobs[req]
        ahead = self.queue.index(job) + (self.current is not None) if job in self.queue else 0
        return job.update(ahead, self.hellos)

    def status(self) -> Status:
        """The state of the group."""
        hello = self.hellos.get(0)
        loaded = hello is not None and not hello.error
        return Status(
            state=self.state,
            message=self._words(),
            ranks=self.world,
            device=hello.device if hello else "",
            model=ModelInfo(
                name=hello.model,
                path=hello.path,
                demo=hello.demo,
                default_size=hello.default_size,
                size_multiple=hello.size_multiple,
                max_pixels=hello.max_pixels,
            )
            if hello is not None and loaded
            else None,
            queue=len(self.queue),
            restarts=self.restarts,
            last_error=self.last_error,
        )

    def _words(self) -> str:
        if self.state == "dead":
            return f"The group cannot run: {self.last_error}"
        if self.state == "boot" and self.last_error:
            return f"The workers are restarting. {self.last_error}. {WORDS['boot']}"
        return WORDS.get(self.state, "Making a picture")

    # --- what happens ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at monotonic time `now`; return what to do, in order."""
        self._now, self._out = now, []
        match event:
            case Submitted(job):
                self.jobs[job.id] = job
                self.queue.append(job)
            case Stop(req):
                self._stop(req)
            case Heard(rank, message):
                self._heard = now
                try:
                    self._hear(rank, message)
                except ValueError as error:
                    self._die(f"rank {rank} sent what does not fit: {error}")
            case Lost(rank, reason):
                self._die(f"rank {rank} {reason}{self._where()}")
            case Previewed(req, uri):
                if self.current and self.current.id == req:
                    self.current.preview = uri
            case Tick():
                self._watch()
        if self.state == "idle" and self.queue:
            self._join("joining") if self._resting else self._prepare(self.queue.popleft())
        return self._out

    def _hear(self, rank: int, message: m.Message) -> None:
        match message:
            case m.Hello():
                self._meet(rank, message)
            case m.Ready(gen=gen):
                self._seat(rank, gen)
            case m.Prepared() | m.Step() | m.Ended():
                job = self.current
                if job is None or message.req != job.id or job.ranks[rank].left:
                    raise ValueError(f"{type(message).__name__} for a picture it does not work on")
                self._work(job, rank, message)

    # --- the group ---

    def _meet(self, rank: int, hello: m.Hello) -> None:
        if rank in self.hellos or self.state not in ("boot", "dead"):
            raise ValueError("a second HELLO")
        if (hello.proto, hello.world) != (m.PROTOCOL, self.world):
            raise ValueError(f"protocol {hello.proto}, {hello.world} ranks; here it is {m.PROTOCOL}, {self.world}")
        self.hellos[rank] = hello
        if hello.error:
            # Trying again would end the same way: stay, and say so on the page.
            self.state, self.last_error = "dead", f"rank {rank}: {hello.error}"
            for job in [*self.queue]:
                self._end(job, "failed", self.last_error)
        elif len(self.hellos) == self.world and self.state == "boot":
            if len({hello.model for hello in self.hellos.values()}) > 1:
                raise ValueError("the ranks loaded different models")
            self._join("joining")

    def _join(self, state: str) -> None:
        self.state, self._resting = state, False
        self._generation += 1
        self._ready.clear()
        self._heard = self._now
        self._tell(m.Join(gen=f"{self._nonce}-{self._generation}"))

    def _seat(self, rank: int, gen: str) -> None:
        if self.state not in ("joining", "rejoin") or gen != f"{self._nonce}-{self._generation}":
            raise ValueError(f"READY for generation {gen}")
        self._ready.add(rank)
        if len(self._ready) == self.world and self.current is None:
            self.state = "idle"
            self.startup_seconds = self.startup_seconds or self._now - self._started

    # --- the picture ---

    def _prepare(self, job: Job) -> None:
        job.start(self.world)
        self.current, self.state, self._heard = job, "preparing", self._now
        self._out.append(Write("try", job))
        self._tell(m.Prepare(req=job.id, request=job.request, config=job.config))

    def _work(self, job: Job, rank: int, message: m.Prepared | m.Step | m.Ended) -> None:
        work = job.ranks[rank]
        match message:
            case m.Prepared():
                if work.prepared:
                    raise ValueError("a second PREPARED")
                work.prepared = message
                if not message.ok:
                    work.left = True
                    job.error = job.error or f"rank {rank}: {message.error}"
                    self._drain(job, -1)
                elif self.state == "preparing" and all(one.prepared for one in job.ranks):
                    job.upto = grant([-1] * self.world, job.steps)
                    job.state, self.state = "running", "running"
                    self._tell(m.Run(req=job.id, upto=job.upto))
            case m.Step():
                if message.step != len(work.steps) or message.step > min(job.upto, job.steps - 1):
                    raise ValueError(f"step {message.step} after {len(work.steps)} steps, {job.upto} granted")
                work.steps.append(message)
                self._lease(job)
            case m.Ended():
                work.ended, work.left = message, True
                if message.why != "error":
                    self._check_end(job, rank, message)
                elif self.state != "rejoin":
                    self._join("rejoin")  # this rank has left its group: the others must, and all meet in a new one
        if all(one.left for one in job.ranks):
            self._close(job)

    def _lease(self, job: Job) -> None:
        if self.state != "running":
            return
        upto = grant([one.finished for one in job.ranks], job.steps)
        if upto > job.upto:
            job.upto = upto
            self._tell(m.Lease(req=job.id, upto=upto))
        if upto == job.steps:
            job.state, job.message = "decoding", "Decoding the picture"

    def _check_end(self, job: Job, rank: int, ended: m.Ended) -> None:
        steps_made = job.steps - 1 if ended.why == "done" else job.final
        if ended.step != steps_made or (ended.why == "done" and job.upto != job.steps):
            raise ValueError(f"it left after step {ended.step} ({ended.why})")
        if ended.why == "done" and rank == 0 and not (ended.pictures and ended.seconds is not None):
            raise ValueError("rank 0 ended without a picture")

    def _stop(self, req: str) -> None:
        job = self.jobs.get(req)
        if job is None or job.state in FINAL:
            return
        if job is not self.current:
            self._end(job, "cancelled", "Stopped before it began. Your prompt and seed are kept.")
        elif job.final is None and job.upto < job.steps:  # a decode under way is not worth stopping
            self._out.append(Write("stop", job))
            self._drain(job, job.upto)

    def _drain(self, job: Job, final: int) -> None:
        if self.state in ("preparing", "running"):
            self.state, job.final = "draining", final
            self._tell(m.Cancel(req=job.id, final=final))

    def _close(self, job: Job) -> None:
        """Every rank has left the picture."""
        self.current = None
        errors = [
            (one.ended.at, rank, one.ended.error)
            for rank, one in enumerate(job.ranks)
            if one.ended and one.ended.why == "error"
        ]
        if errors and not job.error:
            _, rank, error = min(errors)
            job.error = f"rank {rank}: {error}"
        stopped = (job.final is not None and job.final >= 0) or (job.final == -1 and not job.error)
        if self.state != "rejoin" or len(self._ready) == self.world:
            self.state = "idle"
        if stopped:
            self._end(job, "cancelled", STOPPED.format(step=job.finished + 1))
        elif job.error:
            self._end(job, "failed", job.error)
        else:
            job.fill_report(self.hellos, self.startup_seconds)
            assert job.report is not None
            self._end(job, "done", f"Done in {job.report['seconds']['total']:.1f} s")
        if errors and any(hello.backend == "nccl" for hello in self.hellos.values()):
            self._die(job.error)  # a broken NCCL group leaves no rank that could be trusted

    def _end(self, job: Job, state: str, message: str) -> None:
        job.end(state, message)
        if job in self.queue:
            self.queue.remove(job)
        self._out.append(Write("finished", job))
        finished = [one.id for one in self.jobs.values() if one.state in FINAL]
        for req in finished[:-KEPT]:
            del self.jobs[req]

    # --- faults ---

    def _die(self, reason: str) -> None:
        self.state, self.last_error = "dead", reason
        job, self.current = self.current, None
        if job is not None and job.state not in FINAL:
            if job.final is not None and not job.error:
                self._end(job, "cancelled", STOPPED.format(step=job.finished + 1))
            elif job.attempts >= MAX_ATTEMPTS:
                self._end(job, "failed", TWICE)
            else:
                job.state, job.message = "lost", LOST.format(reason=reason)
        self._out.append(Die(reason))

    def _watch(self) -> None:
        silence = self._now - self._heard
        if self.state == "idle" and silence > REST_S and not self._resting:
            if all(hello.backend == "gloo" for hello in self.hellos.values()):
                self._resting = True
                self._tell(m.Rest())
            return
        if self.state in ("joining", "rejoin") and silence > JOIN_S:
            self._die(f"the ranks did not find each other in {JOIN_S:.0f} s")
        elif self.current is not None and silence > self._patience(self.current):
            slow = [rank for rank, one in enumerate(self.current.ranks) if one.finished == self.current.finished]
            self._die(f"rank {slow[0]} stopped answering{self._where()}")

    def _patience(self, job: Job) -> float:
        slowest = job.slowest_ms / 1000
        if not slowest or any(not one.steps for one in job.ranks):
            return START_S
        cuda = any(hello.device_kind == "cuda" for hello in self.hellos.values())
        floor = 30.0 if cuda else 3.0  # a stale step's first run may capture CUDA graphs
        decoding = job.state == "decoding"
        return max(floor, 10 * slowest) if not decoding else max(30.0, 30 * slowest)

    def _where(self) -> str:
        return f" at step {self.current.finished + 2}" if self.current and self.current.ranks else ""

    def _tell(self, message: m.Message) -> None:
        self._out += [Send(rank, message) for rank in range(self.world)]
