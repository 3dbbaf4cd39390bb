"""`python -m launcher generate`: what it refuses before anything is started, and what it reports when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher.__main__ import main
from launcher.batch import Failed
from launcher.generate import make_picture
from tests.support.processes import alive, descendants, end, toy_model, until

ROOT = Path(__file__).parents[2]
TOY_RANK = [str(ROOT / "tests" / "support" / "toy_rank.py")]


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as end:
        main(["generate", *argv])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prompt", " "], "the prompt is empty"),
        (["--steps", "9999"], "steps 9999 is out of range; give a number from 1 to 1000"),
        (["--height", "1000"], "height 1000 is not a multiple of 32; nearest: 992 or 1024"),
        (["--width", "-64"], "width -64 is not a positive multiple of 32"),
        (
            ["--parallelism", "magic"],
            "unknown parallelism 'magic'; choose one of: single, naive_patch, patch, paradigms, tensor",
        ),
        (["--mode", "quick"], "unknown mode 'quick'; choose one of: full_sync"),
        (["--scheduler", "ancestral"], "unknown scheduler 'ancestral'; choose one of: ddim, euler, dpm-solver"),
        (["--split-scheme", "diagonal"], "unknown split_scheme 'diagonal'"),
        (["--warmup-steps", "-1"], "warmup_steps -1 is out of range"),
        (["--warmup-steps", "soon"], "warmup_steps 'soon' is not a number of steps; give one, or \"auto\""),
        (["--warmup-threshold", "-1"], "warmup_threshold -1 is out of range"),
        (["--extrapolation", "0.5,1"], "extrapolation (0.5, 1.0) has 2 factors; give one, or three"),
        (["--extrapolation", "far"], "extrapolation 'far' is not a finite number"),
        (["--extrapolation-memory", "0.5,0.5,2"], "extrapolation_memory 2 is out of range; give a number from 0 to 1"),
        (["--guidance-scale", "nan"], "guidance_scale nan is not a finite number"),
        (["--parallelism", "paradigms", "--scheduler", "euler"], "needs the steps of DDIM and does not work with"),
        (["--picard-window", "0"], "picard_window 0 is out of range; give a number from 1 to 1000"),
        (["--picard-tolerance", "nan"], "picard_tolerance nan is not a finite number"),
        (["--seed", "-3"], "seed -3 is out of range"),
        (["--ranks", "5", "--height", "128"], "5 ranks cannot share 4 units of rows"),
        (["--ranks", "9"], "9 ranks cannot share 8 units of rows (height 256 is 8 x 32 pixels)"),
        (["--ranks", "0"], "0 ranks are out of range"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--text-encoder-on", "1"], "unknown text_encoder_on '1'; choose one of: rank0, all"),
        (["--model", "/no/such/folder"], "neither a folder nor a Hugging Face id"),
        (["--model", "/"], "has no model_index.json"),
        (["--output", "/no/such/folder/x.png"], "the folder /no/such/folder does not exist"),
        (["--output", "/"], "/ is a folder"),
        (["--output", ""], "argument --output: an empty name is none"),
        (["--report", "/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
        (["--report", "/"], "/ is a folder"),
        (["--output", "a" * 5000], "cannot be written: File name too long"),
        (["--prompt", "a\udcff"], "prompt holds half a character"),
        (["--height", "tall"], "invalid int value: 'tall'"),
        (["--image", "/no/such.png"], "/no/such.png is no picture that can be read; give a PNG, JPEG or WebP file"),
        (["--image", __file__], "is no picture that can be read"),
        (["--strength", "1.5"], "strength 1.5 is out of range; give a number above 0, up to 1"),
        (["--image", "x.png", "--steps", "5", "--strength", "0.1"], "strength 0.1 of 5 steps leaves none; raise"),
    ],
)
def test_bad_arguments_are_one_sentence_and_start_nothing(
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    good = ["--prompt", "x", "--output", str(tmp_path / "x.png"), "--device", "cpu"]
    assert sentence in refused(monkeypatch, capsys, *good, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "metadata"), [([], True), (["--no-metadata"], False)])
def test_settings_in_the_picture_can_be_left_out(
    options: list[str], metadata: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[GenerationRequest] = []

    def make_picture(request: GenerationRequest, *_: Any, **__: Any) -> None:
        asked.append(request)
        raise Failed("enough")

    monkeypatch.setattr("launcher.__main__.make_picture", make_picture)
    with pytest.raises(SystemExit, match="1"):
        main(["generate", "--prompt", "x", "--output", str(tmp_path / "x.png"), *options])
    assert [request.metadata for request in asked] == [metadata]


def test_prompt_and_output_are_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt, --output" in refused(monkeypatch, capsys)


def make(folder: Path, prompt: str = "a toy") -> dict[str, object]:
    request = GenerationRequest(prompt=prompt, steps=5, seed=7)
    config = DistriConfig(warmup_steps=1)
    model = str(toy_model(folder))
    return make_picture(request, config, folder / "x.png", ranks=2, device="cpu", model=model, script=TOY_RANK)


def test_a_picture_its_report_and_the_same_bytes_again(
    tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp))
    (tmp_path / "again").mkdir()
    with ThreadPoolExecutor(2) as pool:
        report, _ = pool.map(make, (tmp_path, tmp_path / "again"))
    assert list(report) == [
        "request", "config", "model", "device", "ranks", "threads_per_rank", "startup_seconds", "seconds", "steps",
        "memory_mb", "buffer_mb", "load_percent", "image",
    ]  # fmt: skip
    assert json.loads(json.dumps(report)) == report
    assert report["image"] == str(tmp_path / "x.png")
    assert (report["ranks"], report["device"], report["threads_per_rank"]) == (2, "cpu", 1)
    steps = report["steps"]
    assert [step["phase"] for step in steps] == ["sync"] * 2 + ["stale"] * 3
    assert all(len(step["ranks"]) == 2 and step["ranks"][1]["sent_bytes"] == 16 for step in steps)
    assert report["seconds"]["total"] == pytest.approx(0.11 + report["seconds"]["save"], abs=1e-5)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (64, 64)
        assert "Seed: 7" in image.info["parameters"]
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "again" / "x.png").read_bytes()
    assert list(short_tmp.iterdir()) == []


def test_a_failing_rank_is_one_sentence(tmp_path: Path) -> None:
    sentences = {"fail": "RuntimeError: toy fault on rank 1 at step 2", "kill": "rank 1 was killed by signal 9"}

    def suffer(fault: str) -> None:
        (tmp_path / fault).mkdir()
        with pytest.raises(Failed, match=sentences[fault]):
            make(tmp_path / fault, f"{fault} rank=1 step=2;")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(suffer, sentences)) == [None, None]
    assert not list(tmp_path.rglob("*.png"))


class AtWork:
    """A command that makes a picture slowly."""

    def __init__(self, folder: Path, tmp: Path) -> None:
        code = "import sys; from pathlib import Path; from tests.launcher.test_generate import make\n"
        code += "from launcher.process import exit_on_sigterm\n"
        code += "exit_on_sigterm(); make(Path(sys.argv[1]), 'slow 20000')"
        self.folder, self.tmp = folder, tmp
        self.run = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp)},
            stderr=subprocess.DEVNULL,
        )
        self.pids: list[int] = []

    def wait(self) -> None:
        """Until torchrun and the ranks are there."""
        self.pids = until(lambda: found if len(found := descendants(self.run.pid)) == 3 else None, 300)

    def end(self) -> None:
        end(self.run, [self.run.pid, *self.pids, *descendants(self.run.pid)] if self.run.poll() is None else self.pids)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[signal.Signals, AtWork]]:
    """A command for every way to end one. They start side by side."""
    made: dict[signal.Signals, AtWork] = {}
    with contextlib.ExitStack() as stack:
        for how in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
            made[how] = AtWork(tmp_path_factory.mktemp("at_work"), short)
            stack.callback(made[how].end)
        for one in made.values():
            one.wait()
        yield made


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ending_the_command_ends_its_ranks(commands: dict[signal.Signals, AtWork], how: signal.Signals) -> None:
    one = commands[how]
    assert one.run.poll() is None
    for pid in [one.run.pid, *one.pids] if how is signal.SIGINT else [one.run.pid]:  # a terminal tells all of them
        os.kill(pid, how)
    one.run.wait(20)
    until(lambda: not any(map(alive, one.pids)), 40)


def test_a_command_that_is_told_to_end_leaves_nothing_behind(commands: dict[signal.Signals, AtWork]) -> None:
    one = commands[signal.SIGTERM]
    (one.folder / ".x.png.part-1").write_text("as if it was being saved")
    assert [folder.name.split("-")[:2] for folder in one.tmp.iterdir()] == [["distrifusion", str(one.run.pid)]]
    one.run.terminate()
    assert one.run.wait(20) == 128 + signal.SIGTERM
    assert not any(map(alive, one.pids))
    assert list(one.tmp.iterdir()) == []
    assert not list(one.folder.glob(".*"))


def test_the_real_engine_from_the_command_line(tmp_path: Path) -> None:
    words = ["--prompt", "a red lighthouse by the sea", "--output", "x.png", "--report", "x.json"]
    words += ["--ranks", "2", "--device", "cpu", "--seed", "5", "--text-encoder-on", "all"]
    words += ["--height", "64", "--width", "96", "--steps", "3"]
    words += ["--parallelism", "paradigms", "--picard-window", "3", "--picard-tolerance", "100"]
    run = subprocess.run(
        [sys.executable, "-m", "launcher", "generate", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("x.png: 96 x 64, 3 steps, seed 5, 2 x cpu, ")
    report = json.loads((tmp_path / "x.json").read_text())
    assert (report["image"], report["model"]) == ("x.png", "embedded demo model")
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert report["picard"] == {"iterations": 1, "evaluations": 3}  # whatever moves, it is near enough
    assert [len(step["ranks"]) for step in report["steps"]] == [2]
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (96, 64)
        assert "Parallelism: paradigms" in image.info["parameters"]
        assert "Picard window: 3, Picard tolerance: 100" in image.info["parameters"]
        assert json.loads(image.info["distrifusion"])["topology"]["device"] == "CPU"
