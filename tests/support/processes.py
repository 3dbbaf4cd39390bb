"""Starting, watching and ending process groups in tests: always by pid, and never leaving one behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher.start import RUN_DIR

TOY_APP = Path(__file__).with_name("toy_app.py")
STANDALONE = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """All living processes that `pid` started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def zygote_pid(agent: int, rank: int) -> int:
    """The process between torchrun and a rank. Raises ProcessLookupError if there is none."""
    for pid in children(agent):
        with contextlib.suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    raise ProcessLookupError(f"rank {rank} has no parent")


def rank_pid(agent: int, rank: int) -> int:
    """The process of a rank. Raises ProcessLookupError if there is none."""
    found = children(zygote_pid(agent, rank))
    if not found:
        raise ProcessLookupError(f"there is no rank {rank}")
    return found[0]


def run_dir(pid: int) -> Path:
    """The run directory of the group that a process belongs to."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(Path(word.partition("=")[2]) for word in words if word.startswith(f"{RUN_DIR}="))


def cpu_seconds(pid: int) -> float:
    """CPU time of the living threads of a process; utime + stime (in hundredths) if the kernel has no better."""
    times = [one.read_text().split()[0] for one in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if times:
        return sum(map(int, times)) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listeners(pids: list[int]) -> set[str]:
    """Addresses ("127.0.0.1", "0.0.0.0", ...) on which these processes listen for TCP connections."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(link))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                raw = bytes.fromhex(words[1].split(":")[0])
                packed = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.add(socket.inet_ntop(family, packed))
    return found


def until(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Wait for a true value and return it."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} stayed false for {timeout} s")
        time.sleep(0.02)
    return value


def end(process: subprocess.Popen[bytes], pids: list[int]) -> None:
    """Kill a process that a test started, and its descendants `pids`; nothing may survive a test."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(map(alive, pids)), 40)


class ToyGroup:
    """A running toy_app.py. `call` speaks to its client; use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        ranks: int = 2,
        standalone: bool = False,
        env: dict[str, str] | None = None,
        wait_for: str = "idle",
        options: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.wait_for = wait_for
        options = ["--port", str(self.port), "--device", "cpu", "--model", str(toy_model(folder)), *options]
        command = [sys.executable, str(TOY_APP), "--ranks", str(ranks), *options]
        if standalone:
            command = [sys.executable, *STANDALONE, "--nproc-per-node", str(ranks), str(TOY_APP), *options]
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "DISTRI_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1", **(env or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> ToyGroup:
        try:
            until(self.ready, 180)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill everything that was started."""
        end(self.process, [self.process.pid, *descendants(self.process.pid)])

    def call(self, method: str, **arguments: Any) -> Any:
        """One call of the client in rank 0. RuntimeError carries what the client refused."""
        body = json.dumps([method, arguments]).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", body, timeout=60) as answer:
            result = json.load(answer)
        if "error" in result:
            raise RuntimeError(result["error"])
        return result["result"]

    def ready(self) -> bool:
        """Whether the group has started; False while nobody answers."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the group ended with {self.process.returncode}: {self.log.read_text()}")
        try:
            return self.call("status")["state"] == self.wait_for
        except (OSError, http.client.HTTPException):
            return False

    def submit(self, prompt: str = "a toy", *, steps: int = 6, seed: int = 7, visitor: str = "v") -> str:
        """Start a picture and return its id."""
        request = {"prompt": prompt, "steps": steps, "seed": seed}
        return str(self.call("submit", request=request, config={"warmup_steps": 1}, visitor=visitor))

    def make(self, prompt: str = "a toy", **options: Any) -> dict[str, Any]:
        """Start a picture and return its final update."""
        return dict(self.call("wait", req=self.submit(prompt, **options)))

    def wait_across_restarts(self, req: str, timeout: float = 100.0) -> dict[str, Any]:
        """The final update, asking again whenever the server goes away."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                return dict(self.call("wait", req=req))
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def pids(self) -> dict[int, int]:
        """Process id of every rank."""
        return {int(rank): pid for rank, pid in self.call("pids").items()}


def toy_model(folder: Path) -> Path:
    """A folder that passes for a pipeline as long as nobody loads it."""
    model = folder / "toy_model"
    for part in ("unet", "vae"):
        (model / part).mkdir(parents=True, exist_ok=True)
        (model / part / "config.json").write_text("{}")
        (model / part / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (model / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "x"], "vae": ["diffusers", "x"]}))
    return model
