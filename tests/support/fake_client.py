"""A client without a group behind it: the same surface as launcher.client.Client, invented pictures and times, and
faults at will. For tests of the page that need a fault at a certain moment; never part of the product.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from distri_engine.bands import check_bands, cut_rows, used_ranks
from distri_engine.config import DistriConfig
from distri_engine.evaluation.costs import known_costs
from distri_engine.evaluation.machine import Machine
from distri_engine.request import GenerationRequest
from launcher import png
from launcher.client import HEARTBEAT_S
from launcher.inputs import Inputs
from launcher.measure import Survey
from launcher.model import DEMO_MODEL
from launcher.png import PICTURES
from launcher.schema import Lane, ModelInfo, Record, Refused, Status, Update

MODEL = ModelInfo(
    name="embedded demo model",
    path="assets/demo_model",
    demo=True,
    default_size=256,
    size_multiple=32,
    max_pixels=1024 * 1024,
)

COSTS = known_costs(json.loads((DEMO_MODEL / "unet" / "config.json").read_text()), "float32")
CPU = Machine(flops=1e11, bandwidth=7e9, memory=2e10, launch_s=8e-6, message_s=2e-5, overlap=1.0)
KNOWN = Survey(machine=CPU, measured=("flops",), costs=COSTS)


class FakeClient:
    """Draws one picture after the other on a thread of its own."""

    def __init__(
        self, folder: Path, *, ranks: int = 2, step_seconds: float = 0.01, device: str = "CPU", model: ModelInfo = MODEL
    ) -> None:
        self.folder, self.ranks, self.step_seconds, self.device, self.model = folder, ranks, step_seconds, device, model
        self.fault: Callable[[int], str] = lambda step: ""  # step -> "", "failed" or "lost"
        # (method, step) -> whether it may begin; also ("waking", 0) before the first, ("restart", step) after a loss
        self.gate: Callable[[str, int], bool] = lambda method, step: True
        self.loading = False
        self.inputs = Inputs(folder, lambda: [request.image or "" for request, _ in self.submitted])
        self.submitted: list[tuple[GenerationRequest, DistriConfig]] = []
        self.known: Survey | None = None  # what Auto is told
        self.plans: list[dict | None] = []
        self._updates: dict[str, Update] = {}
        self._owners: dict[str, tuple[str, str]] = {}
        self._plans: dict[str, dict | None] = {}
        self._records: list[Record] = []
        self._cancelled: set[str] = set()
        self._queue: list[str] = []
        self._current = ""
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """Stop whatever runs, and forget faults and what was submitted."""
        for id in list(self._updates):
            self.cancel(id)
        with self._changed:
            self._changed.wait_for(lambda: not self._current and not self._queue, timeout=60)
        self.gate = lambda method, step: True
        self.fault, self.loading, self.step_seconds, self.submitted = lambda step: "", False, 0.01, []
        self.known, self.plans = None, []

    def owner(self, request: int = -1) -> str:
        """The visitor of a request, by its number among those since `heal`; of the newest if none is named."""
        return list(self._owners.values())[request if request < 0 else request - len(self.submitted)][0]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5)

    # --- the surface that the page uses

    def submit(
        self,
        request: GenerationRequest,
        config: DistriConfig,
        *,
        visitor: str = "",
        comparison: str = "",
        plan: dict | None = None,
    ) -> str:
        if self.loading:
            raise Refused("the model is still loading; try again in a moment")
        request = request.resolved(default_size=self.model.default_size)
        check_bands(request, config, self.ranks)
        with self._changed:
            id = f"{next(self._ids):04d}-{random.getrandbits(32):08x}"
            self.submitted.append((request, config))
            self.plans.append(plan)
            self._plans[id] = plan
            self._owners[id] = (visitor, comparison)
            self._queue.append(id)
            self._updates[id] = Update(
                id=id,
                state="queued",
                message="In the queue",
                position=len(self._queue),
                steps=request.steps,
                request=dataclasses.asdict(request),
                config=dataclasses.asdict(config),
            )
            self._changed.notify_all()
        return id

    def picture(self, text: str) -> AbstractContextManager[str]:
        return self.inputs.kept(text)

    def updates(self, request_id: str, *, interval: float = 0.2) -> Iterator[Update]:
        shown: Update | None = None
        while True:
            with self._changed:
                if request_id not in self._updates:
                    raise ValueError(f"there is no request {request_id!r:.60}")
                repeat = time.monotonic() + HEARTBEAT_S
                while self._updates[request_id] is shown and not self._closed and time.monotonic() < repeat:
                    self._changed.wait(HEARTBEAT_S)
                shown = self._updates[request_id]
            yield shown
            if shown.final or self._closed:
                return
            time.sleep(interval)

    def cancel(self, request_id: str) -> None:
        with self._changed:
            self._cancelled.add(request_id)
            if request_id in self._queue:
                self._queue.remove(request_id)
                self._finish(request_id, "cancelled", "You left the queue.")

    def status(self) -> Status:
        lost = self._current and self._updates[self._current].state == "lost"
        state = "boot" if self.loading else "rejoin" if lost else "running" if self._current else "idle"
        return Status(
            state=state,
            message="",
            ranks=self.ranks,
            device="" if self.loading else self.device,
            model=None if self.loading else self.model,
            queue=len(self._queue),
            restarts=0,
        )

    def metrics(self) -> bytes:
        return b"distri_queue_length 0.0\n"

    def history(self, *, visitor: str | None = None, limit: int = 24) -> list[Record]:
        records = [record for record in reversed(self._records) if visitor in (None, record.visitor)]
        return records[:limit]

    def running(self, *, visitor: str) -> list[str]:
        return [id for id, update in self._updates.items() if not update.final and self._owners[id][0] == visitor]

    def survey(self) -> Survey | None:
        return self.known

    def wait_ready(self, timeout: float) -> bool:
        return not self.loading

    # --- the work

    def _set(self, id: str, **changes: object) -> None:
        with self._changed:
            self._updates[id] = dataclasses.replace(self._updates[id], **changes)  # type: ignore[arg-type]
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                self._current = self._queue.pop(0)
            self._draw(self._current)
            with self._changed:
                self._current = ""
                self._changed.notify_all()

    def _wait(self, id: str, what: str, step: int) -> None:
        with self._changed:
            while not self.gate(what, step) and id not in self._cancelled and not self._closed:
                self._changed.wait(0.02)

    def _draw(self, id: str, attempt: int = 1) -> None:
        update = self._updates[id]
        request, config = GenerationRequest(**update.request), DistriConfig(**update.config)
        method, steps = str(config.parallelism), request.steps
        self._set(id, state="starting", message="Waking the peers", position=0, attempt=attempt)
        time.sleep(3 * self.step_seconds)
        self._wait(id, "waking", 0)
        assert request.height
        assert request.width
        users = used_ranks(config, self.ranks)
        boxes = [box.pixels(8) for box in cut_rows(request.height // 8, request.width // 8, 4, users)]
        scale = {"single": 1.9, "naive_patch": 0.93}.get(method, 1.0)
        picture = _scene(request, method, self.ranks)
        histories: list[list[tuple[float, float]]] = [[] for _ in range(self.ranks)]
        rng = random.Random(request.seed)
        phases, preview, started = "", None, time.perf_counter()
        changes: list[float | None] = []
        for step in range(steps):
            self._wait(id, method, step)
            fault = self.fault(step) if attempt == 1 else ""
            if fault == "failed":
                self._finish(id, "failed", "Rank 1: out of memory while computing step 6.")
                return
            if fault == "lost":
                text = f"A device was lost: rank {self.ranks - 1} stopped answering at step {step}. "
                self._set(id, state="lost", message=text + "The workers are restarting; your picture is queued again.")
                time.sleep(30 * self.step_seconds)
                self._wait(id, "restart", step)
                self._draw(id, attempt=2)
                return
            if id in self._cancelled:
                self._finish(id, "cancelled", f"Stopped at step {step}. Your prompt and seed are kept.")
                return
            time.sleep(self.step_seconds * scale)
            sync = method == "patch" and step <= config.warmup_steps
            phases += "S" if sync else "d"
            changes.append(0.5 / step**0.9 if step and method == "patch" else None)
            for rank in range(users):
                compute = 1000 * self.step_seconds * scale * rng.uniform(0.88, 1.0)
                wait = compute * (0.35 if sync else rng.uniform(0.01, 0.05)) if users > 1 else 0.0
                histories[rank].append((compute, wait))
            if step % 2 or step == steps - 1:
                preview = _preview(picture, 1 - (step + 1) / steps, rng)
            lanes = tuple(
                Lane(
                    rank=rank,
                    device=self.device,
                    box=(boxes[rank] if users > 1 else (0, 0, request.width, request.height)) if rank < users else None,
                    branch="both" if rank < users else "none",
                    step=step + 1 if rank < users else 0,
                    compute_ms=histories[rank][-1][0] if rank < users else 0,
                    wait_ms=histories[rank][-1][1] if rank < users else 0,
                    sent_bytes=1_240_000 if users > 1 else 0,
                    memory_mb=412.0 + rank,
                    buffer_mb=3.4 if users > 1 and method == "patch" else 0.0,
                    load=97.4 if rank < users else 0.0,
                    median_ms=sorted(c + w for c, w in histories[rank])[len(histories[rank]) // 2]
                    if rank < users
                    else 0,
                    history=tuple(histories[rank]),
                )
                for rank in range(self.ranks)
            )
            pace = max(lane.median_ms for lane in lanes)
            self._set(
                id,
                state="running",
                message=f"Step {step + 1} / {steps}",
                step=step + 1,
                phases=phases,
                changes=tuple(changes),
                ms_per_step=pace,
                seconds_left=pace * (steps - step - 1) / 1000,
                lanes=lanes,
                preview=preview,
            )
        self._set(id, state="decoding", message="Decoding the picture")
        denoise = time.perf_counter() - started
        time.sleep(3 * self.step_seconds)
        path = self.folder / PICTURES / f"{id}.png"
        path.parent.mkdir(exist_ok=True)
        resolved = config.replace(height=request.height, width=request.width)
        about = {"model": self.model.name, "device": self.device, "ranks": self.ranks}
        png.save(picture, path, png.chunks(request, resolved, **about))
        report = {
            "request": update.request,
            "config": update.config,
            "model": self.model.name,
            "device": self.device.lower(),
            "ranks": self.ranks,
            "threads_per_rank": 1,
            "seconds": {
                "text": 0.012,
                "denoise": denoise,
                "decode": 0.08 * scale,
                "save": 0.01,
                "total": denoise + 0.1,
            },
            "steps": [
                {
                    "step": step,
                    "phase": "sync" if phase == "S" else "stale",
                    "ranks": [
                        {"compute_ms": history[step][0], "wait_ms": history[step][1], "sent_bytes": 1_240_000}
                        for history in histories[:users]
                    ],
                }
                for step, phase in enumerate(phases)
            ],
            "memory_mb": [412.0] * self.ranks,
            "image": str(path),
        }
        if self._plans[id] is not None:
            report["plan"] = self._plans[id]
        self._finish(id, "done", "Done", picture=str(path), report=report)

    def _finish(
        self, id: str, state: str, message: str, picture: str | None = None, report: dict | None = None
    ) -> None:
        update, (visitor, comparison) = self._updates[id], self._owners[id]
        self._records.append(
            Record(
                id=id,
                finished=time.time(),
                state=state,
                request=update.request,
                config=update.config,
                picture=picture,
                report=report,
                message=message,
                visitor=visitor,
                comparison=comparison,
            )
        )
        self._set(id, state=state, message=message, picture=picture, report=report)


def _scene(request: GenerationRequest, method: str, ranks: int) -> Image.Image:
    """A landscape that depends on prompt and seed; naive patches get one of their own for every band."""
    assert request.height
    assert request.width
    rng = random.Random(f"{request.prompt} {request.seed}")
    if method != "naive_patch":
        picture = _landscape(rng, request.width, request.height)
        if method == "patch":  # a few levels off, as displaced patches are
            picture = Image.blend(picture, picture.filter(ImageFilter.GaussianBlur(1)), 0.4)
        return picture
    picture = Image.new("RGB", (request.width, request.height))
    for box in cut_rows(request.height // 8, request.width // 8, 4, ranks):
        left, top, right, bottom = box.pixels(8)
        picture.paste(_landscape(rng, right - left, bottom - top), (left, top))
    return picture


def _landscape(rng: random.Random, width: int, height: int) -> Image.Image:
    sky, ground = [(rng.randrange(40, 250), rng.randrange(60, 200), rng.randrange(90, 255)) for _ in range(2)]
    big = Image.linear_gradient("L").resize((width * 2, height * 2))
    picture = Image.composite(Image.new("RGB", big.size, ground), Image.new("RGB", big.size, sky), big)
    draw = ImageDraw.Draw(picture)
    x, y, r = rng.uniform(0.2, 0.8) * big.width, rng.uniform(0.15, 0.5) * big.height, big.width * 0.08
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 240, 205))
    for layer in range(3):
        line = [(0, big.height)]
        for step in range(9):
            line.append((big.width * step / 8, big.height * (0.55 + 0.13 * layer + rng.uniform(-0.1, 0.1))))
        shade = tuple(int(part * (0.6 - 0.17 * layer)) for part in ground)
        draw.polygon([*line, (big.width, big.height)], fill=shade)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _preview(picture: Image.Image, noise: float, rng: random.Random) -> str:
    small = picture.resize((picture.width // 8, picture.height // 8))
    grain = Image.frombytes("RGB", small.size, rng.randbytes(3 * small.width * small.height))
    shown = Image.blend(small, grain, noise).resize((picture.width, picture.height), Image.Resampling.BICUBIC)
    shown.thumbnail((320, 320))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
