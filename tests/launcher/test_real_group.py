"""The failure table in the real process tree: `python app.py` with its page, torchrun, zygotes, two ranks and the
embedded model. One group suffers it all; the tests build on each other, and the last one ends it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launcher import wire
from launcher.faults import VARIABLE
from launcher.job import TWICE
from launcher.model import DEMO_MODEL
from tests.support.processes import alive, children, descendants, listeners, rank_pid, run_dir, until, zygote_pid
from tests.support.real_app import RealApp, real_app

AUTH = ("me", "pass:word")
BASIC = f"Basic {base64.b64encode(':'.join(AUTH).encode()).decode()}"
PICTURE = {"height": 128, "width": 128, "parallelism": "patch", "split_batch": False}
# Each happens once: to the first picture that gets so far.
PLAN = (
    "raise:0@-1,once;die:0@-1,once;raise:1@2,once;die:1@3,once;garbage:1@4,once;stop:0@5,once;die:0@6,once;die:0@6,once"
)


class House:
    """A running app.py: its API, its processes, and what it writes."""

    def __init__(self, running: RealApp, folder: Path, tmp: Path) -> None:
        self.url, self.process = running.url, running.process
        self.folder, self.tmp = folder, tmp
        self._usual: dict[int, Any] = {}

    def api(self) -> Any:
        from gradio_client import Client

        return Client(self.url, auth=AUTH, verbose=False, analytics_enabled=False, download_files=False)

    def usual(self) -> Any:
        """The caller who has no other; a new one after every restart, which forgets who has logged in."""
        rank = self.rank(0)
        if rank not in self._usual:
            self._usual = {rank: self.api()}
        return self._usual[rank]

    def get(self, path: str, authorization: str = "") -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, headers={"Authorization": authorization})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self) -> dict[str, Any]:
        """What /healthz says; nothing while nobody answers."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.get("healthz")[1]))
        return {}

    def rank(self, rank: int) -> int:
        return rank_pid(self.process.pid, rank)

    def journal(self) -> list[dict[str, Any]]:
        """Its whole lines."""
        path = self.folder / "outputs" / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def entries(self, entry: str) -> list[dict[str, Any]]:
        return [line for line in self.journal() if line["entry"] == entry]

    def make(self, steps: int, seed: int = 5, api: Any = None) -> bytes:
        """The picture that a caller gets."""
        made, _ = (api or self.usual()).predict("a red house", seed=seed, steps=steps, **PICTURE, api_name="/generate")
        return Path(made["path"] if isinstance(made, dict) else made).read_bytes()

    def suffer(self, fault: Callable[[], object], restarts: int = 1) -> None:
        """Let something happen, and wait until the group works again."""
        before = self.health()["restarts"]
        fault()
        until(lambda: self.health().get("restarts") == before + restarts, 240)
        until(lambda: self.health()["state"] == "ready", 240)

    def disturbed(self, steps: int, restarts: int = 1) -> dict[str, Any]:
        """The end of a picture during which the group dies; whoever waits for it is rank 0's, and may be cut off."""
        ended = len(self.entries("finished"))
        self.suffer(
            lambda: self.api().submit("a red house", seed=5, steps=steps, **PICTURE, api_name="/generate"), restarts
        )
        until(lambda: len(self.entries("finished")) > ended, 240)
        return self.entries("finished")[-1]

    def tries(self, req: str) -> int:
        return sum(line["id"] == req for line in self.entries("try"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[House]]:
    """Another one, whose weights do not load. It starts beside the house."""
    folder = tmp_path_factory.mktemp("broken")
    model = shutil.copytree(DEMO_MODEL, folder / "model")
    config = model / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 192', '"cross_attention_dim": 96'))
    options = ("--ranks", "2", "--device", "cpu", "--auth", ":".join(AUTH), "--model", str(model))
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: House(stack.enter_context(real_app(folder, *options)), folder, folder))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, broken: Future[House]) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    short = Path(tempfile.mkdtemp(prefix="t-"))
    env = {VARIABLE: PLAN, "TMPDIR": str(short)}
    with real_app(folder, "--ranks", "2", "--device", "cpu", "--auth", ":".join(AUTH), env=env) as running:
        made = House(running, folder, short)
        until(lambda: made.health().get("state") == "ready", 240)
        yield made
    short.rmdir()  # nothing is left in it


def test_health_is_open_and_metrics_are_not(house: House) -> None:
    assert house.health()["state"] == "ready"
    assert house.get("metrics")[0] == 401
    assert house.get("gradio_api/info")[0] == 401
    code, text = house.get("metrics", BASIC)
    assert code == 200
    assert 'distri_requests_total{state="done"} 0.0' in text


def test_no_password_and_no_port_for_others(house: House) -> None:
    pids = [house.process.pid, *descendants(house.process.pid)]
    assert len(pids) >= 5
    for pid in pids:
        assert AUTH[1].encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert listeners(pids) == {"127.0.0.1"}
    assert run_dir(pids[-1]).stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_made_is_refused_and_what_cannot_be_prepared_fails(house: House) -> None:
    with pytest.raises(Exception, match="Steps 9999 is out of range"):
        house.make(9999)
    assert house.journal() == []
    with pytest.raises(Exception, match=r"Rank 0: RuntimeError: DISTRI_FAULT asked for this after step -1"):
        house.make(1)
    assert house.health()["restarts"] == 0


def test_strangers_on_the_sockets_and_a_rank_that_is_killed_while_it_prepares(house: House) -> None:
    zygotes = sorted(children(house.process.pid))
    for name, value in {"hub": b"x", "zygotes": b'{"rank":1,"end":0}'}.items():
        with wire.connect(run_dir(house.rank(1)) / name, 5) as sock, contextlib.suppress(BrokenPipeError):
            sock.send(value)
    end = house.disturbed(1)
    assert (end["state"], house.tries(end["id"])) == ("done", 2)
    assert sorted(children(house.process.pid)) == zygotes


def test_an_exception_on_a_rank_reaches_the_caller_and_the_group_goes_on(house: House) -> None:
    ranks, restarts = [house.rank(0), house.rank(1)], house.health()["restarts"]
    with pytest.raises(Exception, match=r"Rank 1: RuntimeError: DISTRI_FAULT asked for this after step 2"):
        house.make(3)
    house.make(3)
    assert (ranks, restarts) == ([house.rank(0), house.rank(1)], house.health()["restarts"])


@pytest.mark.parametrize("steps", [4, 5, 6], ids=["killed", "garbage", "stopped"])
def test_a_rank_that_is_lost_costs_an_attempt_and_not_the_picture(house: House, steps: int) -> None:
    end = house.disturbed(steps)
    assert (end["state"], house.tries(end["id"])) == ("done", 2)
    assert Path(end["pictures"][0]).read_bytes() == house.make(steps)


def test_a_picture_that_ends_the_group_twice_is_given_up(house: House) -> None:
    end = house.disturbed(7, restarts=2)
    assert (end["state"], end["message"], house.tries(end["id"])) == ("failed", TWICE, 2)
    text = house.get("metrics", BASIC)[1]
    for state in ("done", "cancelled", "failed"):  # over all restarts
        count = sum(line["state"] == state for line in house.entries("finished"))
        assert f'distri_requests_total{{state="{state}"}} {count:.1f}' in text


def test_a_full_disk_refuses_and_a_rank_lost_meanwhile_comes_back(house: House) -> None:
    size = (house.folder / "outputs" / "journal.jsonl").stat().st_size
    resource.prlimit(house.rank(0), resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    with pytest.raises(Exception, match="Nothing can be accepted: File too large"):
        house.make(1)
    assert (house.folder / "outputs" / "journal.jsonl").stat().st_size == size
    resource.prlimit(house.rank(0), resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    house.make(1)
    house.suffer(lambda: os.kill(house.rank(1), signal.SIGKILL))  # idle
    house.make(1)


def test_a_picture_from_a_picture(house: House) -> None:
    start = f"data:image/png;base64,{base64.b64encode(house.make(2)).decode()}"
    made = []
    for strength in (0.5, 1.0):
        how = {**PICTURE, "steps": 4, "seed": 5, "image": start, "strength": strength}
        path, report = house.usual().predict("a red house", **how, api_name="/generate")
        made.append(Path(path["path"]).read_bytes())
        assert len(report["steps"]) == 4 * strength
    assert len({*made, house.make(4)}) == 3
    assert list((house.folder / "outputs" / "inputs").iterdir()) == []


@pytest.fixture(scope="module")
def callers(house: House) -> list[Any]:
    """Ten of them, each with a session of its own."""
    return [house.api() for _ in range(10)]


def test_fifty_requests_of_ten_callers_and_each_gets_its_picture(house: House, callers: list[Any]) -> None:
    seeds = range(5)
    alone = {seed: house.make(2, seed, callers[0]) for seed in seeds}
    assert len(set(alone.values())) == len(seeds)

    def visit(number: int) -> list[bool]:
        order = random.Random(number).sample(seeds, len(seeds))
        return [house.make(2, seed, callers[number]) == alone[seed] for seed in order]

    with ThreadPoolExecutor(10) as pool:
        answers = [one for visitor in pool.map(visit, range(10)) for one in visitor]
    assert answers == [True] * 50
    assert house.health()["queue"] == 0


def test_ten_wait_one_leaves_and_the_others_keep_their_order(house: House, callers: list[Any]) -> None:
    before = len(house.entries("accepted"))
    long, *jobs = [
        arrived(
            house, number, caller.submit("x", seed=number, steps=2 if number else 900, **PICTURE, api_name="/generate")
        )
        for number, caller in enumerate([house.api(), *callers])
    ]
    jobs[3].cancel()
    until(lambda: house.entries("finished")[-1]["state"] == "cancelled", 60)
    long.cancel()
    made = {number + 1: job.result(240) for number, job in enumerate(jobs) if number != 3}
    accepted = house.entries("accepted")[before:]
    seeds = {line["id"]: line["request"]["seed"] for line in accepted}
    ends = {seeds[line["id"]]: line for line in house.entries("finished") if line["id"] in seeds}
    assert [seeds[line["id"]] for line in house.entries("try") if line["id"] in seeds] == [
        seed for seed in seeds.values() if seed != 4
    ]
    assert {seed: end["state"] for seed, end in ends.items()} == {
        seed: "cancelled" if seed in (0, 4) else "done" for seed in range(11)
    }
    assert {seed: report["request"]["seed"] for seed, (_, report) in made.items()} == {seed: seed for seed in made}


def arrived(house: House, number: int, job: Any) -> Any:
    """A caller's job once it is accepted; after eight, callers wait at the page's door."""
    until(lambda: number >= 8 or house.entries("accepted")[-1]["request"]["seed"] == number, 60)
    return job


def test_a_zygote_that_is_killed_costs_a_start_from_nothing(house: House) -> None:
    zygotes = children(house.process.pid)
    house.suffer(lambda: os.kill(zygote_pid(house.process.pid, 1), signal.SIGKILL))
    assert not set(zygotes) & set(children(house.process.pid))
    house.make(1)


def test_told_to_end_it_leaves_nothing_and_keeps_the_request(house: House) -> None:
    pids = descendants(house.process.pid)
    house.api().submit("x", steps=900, **PICTURE, api_name="/generate")
    until(lambda: house.journal()[-1]["entry"] == "try", 60)
    assert len(list(house.tmp.iterdir())) == 1
    os.kill(house.rank(1), signal.SIGSTOP)  # rank 0 is soon blocked in a collective
    house.process.terminate()
    assert house.process.wait(60) == 128 + signal.SIGTERM
    assert not any(map(alive, pids))
    assert house.journal()[-1]["entry"] == "untry"
    assert list(house.tmp.iterdir()) == []
    assert not list(house.folder.rglob(".*"))


def test_weights_that_do_not_load_are_said_and_nothing_restarts(broken: Future[House]) -> None:
    house = broken.result()
    until(lambda: house.health().get("state") == "dead", 240)
    with pytest.raises(Exception, match=r"the model .* cannot be opened as an SDXL pipeline"):
        house.make(1)
    assert house.health()["restarts"] == 0
