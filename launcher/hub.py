"""The state of the group and of every request as a pure state machine: events in, actions out. It reads no clock and
does no I/O, so that any order of events can be tried in a test; hub_io.py connects it to the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from launcher import messages as m
from launcher.events import Action, Die, Event, Heard, Lost, Previewed, Send, Stop, Submitted, Tick, Write
from launcher.job import FINAL, MAX_ATTEMPTS, STOPPED, TWICE, Job
from launcher.roster import Roster
from launcher.schema import Status, Update

KEPT = 64  # finished requests that can still be followed with all their figures
START_S = 120.0  # patience with a picture's first step, which may allocate and warm up
JOIN_S = {"gloo": 15.0, "nccl": 60.0}  # patience with ranks that are to meet; gloo takes 10 ms
REST_S = 2.0  # idle time after which gloo groups are left: their threads poll 100 times a second, joining takes 10 ms
WORDS = {
    "boot": "Loading the model on every device. You can write your prompt now.",
    "joining": "The devices are joining their group.",
    "rejoin": "The devices are joining their group again.",
    "idle": "Ready when you are",
}
LOST = "A device was lost: {reason}. The workers are restarting; your picture is queued again."


class Hub:
    """One group of `world` ranks and the requests it works on, one at a time.

    `state`: boot (weights are loaded), joining, idle, preparing, running, draining (a stop), rejoin (after an
    exception), dead. `backlog` are requests of an earlier group; `started` is the monotonic time of the process start.
    """

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
        self.state = "boot"
        self.roster = Roster(world, nonce)
        self.jobs: dict[str, Job] = {}
        self.queue: deque[Job] = deque()
        self.current: Job | None = None
        self.startup_seconds = 0.0
        self.restarts = restarts
        self.last_error = last_error
        self._started = started
        self._heard = started
        self._now = started
        self._stepped: float | None = None
        self._out: list[Action] = []
        self._died = False
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
        return job.update(ahead, self.roster.hellos)

    def status(self) -> Status:
        """The state of the group."""
        message = WORDS.get(self.state, "Making a picture")
        if self.state == "dead":
            message = f"The group cannot run: {self.last_error}"
        elif self.state == "boot" and self.last_error:
            message = f"The workers are restarting: {self.last_error}. {message}"
        return Status(
            state=self.state,
            message=message,
            ranks=self.roster.world,
            device=self.roster.device,
            model=self.roster.model,
            queue=len(self.queue),
            restarts=self.restarts,
            last_error=self.last_error,
            last_step_age=None if self._stepped is None else round(self._now - self._stepped, 1),
        )

    # --- what happens ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at monotonic time `now`; return what to do, in order. After a Die there is nothing to do."""
        self._now, self._out = now, []
        if self._died:
            return []
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
                self._die(f"rank {rank} {reason}{self._where(rank)}")
            case Previewed(req, uri):
                if self.current and self.current.id == req:
                    self.current.preview = uri
            case Tick():
                self._watch()
        if self.state == "idle" and self.queue:
            self._join("joining") if self.roster.resting else self._prepare(self.queue.popleft())
        return self._out

    def _hear(self, rank: int, message: m.Message) -> None:
        match message:
            case m.Hello():
                self._meet(rank, message)
            case m.Ready(gen=generation):
                self.roster.seat(rank, generation)
                if self.roster.complete and self.current is None:
                    self.state = "idle"
                    self.startup_seconds = self.startup_seconds or self._now - self._started
            case m.Prepared() | m.Step() | m.Ended():
                job = self.current
                if job is None or message.req != job.id or job.ranks[rank].left:
                    raise ValueError(f"{type(message).__name__} for a picture it does not work on")
                self._work(job, rank, message)
                if self.current and all(one.left for one in job.ranks):
                    self._close(job)

    def _work(self, job: Job, rank: int, message: m.Prepared | m.Step | m.Ended) -> None:
        match message:
            case m.Prepared():
                self._prepared(job, rank, message)
            case m.Step():
                job.add(rank, message)
                self._stepped = self._now
                self._lease(job)
            case m.Ended():
                job.leave(rank, message)
                if message.why == "error":
                    self._break(job)

    # --- the group ---

    def _meet(self, rank: int, hello: m.Hello) -> None:
        self.roster.meet(rank, hello)
        if hello.error:
            # Trying again would end the same way: stay, and say so on the page. The first reason is the one that stays.
            if self.state != "dead":
                self.state, self.last_error = "dead", f"rank {rank}: {hello.error}"
            for job in [*self.queue]:
                self._end(job, "failed", self.last_error)
        elif self.roster.loaded:
            self._join("joining")

    def _join(self, state: str) -> None:
        self.state, self._heard = state, self._now
        self._tell(self.roster.next_generation())

    def _break(self, job: Job) -> None:
        """A rank failed in a step and leaves its group: the others must, too, and all meet in a new one."""
        if not self.roster.breakable:
            self.current = None
            self._end(job, "failed", job.first_error)
            self._die(job.first_error)
        elif self.state != "rejoin":
            self._join("rejoin")

    # --- the picture ---

    def _prepare(self, job: Job) -> None:
        job.start(self.roster.world)
        self.current, self.state, self._heard = job, "preparing", self._now
        self._out.append(Write("try", job))
        self._tell(m.Prepare(req=job.id, request=job.request, config=job.config))

    def _prepared(self, job: Job, rank: int, message: m.Prepared) -> None:
        job.prepare(rank, message)
        if not message.ok:
            self._drain(job, -1)
        elif self.state == "preparing" and job.prepared:
            job.state = self.state = "running"
            job.upto = job.lease
            self._tell(m.Run(req=job.id, upto=job.upto))

    def _lease(self, job: Job) -> None:
        if self.state != "running":
            return
        upto = job.lease
        if upto > job.upto:
            job.upto = upto
            self._tell(m.Lease(req=job.id, upto=upto))
        if upto == job.steps:
            job.state, job.message = "decoding", "Decoding the picture"

    def _stop(self, req: str) -> None:
        job = self.jobs.get(req)
        if job is None or job.state in FINAL:
            return
        if job is not self.current:
            self._end(job, "cancelled", "Stopped before it began. Your prompt and seed are kept.")
        elif job.final is None and job.upto < job.steps:  # a decode under way is not worth stopping
            self._out.append(Write("stop", job))
            job.stopped = True
            self._drain(job, job.upto)

    def _drain(self, job: Job, final: int) -> None:
        if self.state in ("preparing", "running"):
            self.state, job.final = "draining", final
            self._tell(m.Cancel(req=job.id, final=final))

    def _close(self, job: Job) -> None:
        """Every rank has left the picture."""
        self.current = None
        if self.state != "rejoin" or self.roster.complete:
            self.state = "idle"
        if job.stopped:
            self._end(job, "cancelled", STOPPED.format(step=job.converged))
        elif job.first_error:
            self._end(job, "failed", job.first_error)
        else:
            job.fill_report(self.roster.hellos, self.startup_seconds)
            self._end(job, "done", f"Done in {job.seconds:.1f} s")

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
        self._died, self.state, self.last_error = True, "dead", reason
        job, self.current = self.current, None
        if job is not None:
            if job.stopped:
                self._end(job, "cancelled", STOPPED.format(step=job.converged))
            elif job.attempts >= MAX_ATTEMPTS:
                self._end(job, "failed", TWICE)
            else:
                job.state, job.message = "lost", LOST.format(reason=reason)
        self._out.append(Die(reason))

    def _watch(self) -> None:
        silence = self._now - self._heard
        if self.current is not None and silence > self._patience(self.current):
            self._die(f"{self._silent(self.current)} stopped answering{self._where()}")
        elif self.state in ("joining", "rejoin") and silence > (patience := JOIN_S[self.roster.backend]):
            self._die(f"the ranks did not find each other in {patience:.0f} s")
        elif self.state == "idle" and silence > REST_S and self.roster.breakable and not self.roster.resting:
            self.roster.resting = True
            self._tell(m.Rest())

    def _silent(self, job: Job) -> str:
        """Who may be the one that hangs: those that are furthest behind. The others wait for them."""
        working = {rank: one.finished for rank, one in enumerate(job.ranks) if not one.left}
        behind = [str(rank) for rank, finished in working.items() if finished == min(working.values())]
        return f"rank {behind[0]}" if len(behind) == 1 else f"one of the ranks {', '.join(behind)}"

    def _patience(self, job: Job) -> float:
        """Seconds of silence after which a rank is given up."""
        if any(not one.steps for one in job.ranks):
            return START_S
        slowest = job.slowest_ms / 1000
        if job.state == "decoding":
            return max(30.0, 30 * slowest)
        return max(30.0 if self.roster.on_cuda else 3.0, 10 * slowest)  # on CUDA a step may capture graphs

    def _where(self, rank: int | None = None) -> str:
        if rank is not None and rank not in self.roster.hellos:
            return " while it loaded the model"
        return f" at step {self.current.finished + 2}" if self.current else ""

    def _tell(self, message: m.Message) -> None:
        self._out += [Send(rank, message) for rank in range(self.roster.world)]
