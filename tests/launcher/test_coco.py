"""`python -m launcher coco`: a folder of pictures that goes on after any end, to the same bytes, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.evaluation.coco import read_captions
from distri_engine.request import GenerationRequest
from launcher import coco
from launcher import picture_folder as pictures
from launcher.__main__ import main
from launcher.batch import Failed
from launcher.errand import Crew
from launcher.model import DEMO_MODEL
from tests.support.gang import run_on_ranks
from tests.support.processes import alive, descendants, end, toy_model, until

ROOT = Path(__file__).parents[2]
TOY_RANK = [str(ROOT / "tests" / "support" / "toy_rank.py"), "coco"]
CAPTIONS = [f"a {colour} house" for colour in ("red", "blue", "green", "white", "pink", "grey", "black", "brown")]


def lines(folder: Path, captions: list[str], name: str = "captions.txt") -> Path:
    file = folder / name
    file.write_text("".join(f"{caption}\n" for caption in captions))
    return file


def no_start(*_: object, **__: object) -> None:
    raise AssertionError("something was started")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--captions", "/no/such/file"], "captions /no/such/file cannot be read: No such file or directory"),
        (["--count", "9"], "count 9 is out of range; "),
        (["--count", "0"], "count 0 is out of range; "),
        (["--split", "2", "2"], "split 2 2 is out of range; parts are numbered from 0 to 1"),
        (["--split", "0", "0"], "the number of parts in split 0 is out of range"),
        (["--split", "0"], "argument --split: expected 2 arguments"),
        (["--steps", "0"], "steps 0 is out of range"),
        (["--mode", "quick"], "unknown mode 'quick'"),
        (["--ranks", "9", "--height", "256"], "9 ranks cannot share 8 units of rows"),
        (["--text-encoder-on", "1"], "unknown text_encoder_on '1'"),
        (["--json", "/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
        (["--output", "/proc/x/y"], "the folder /proc/x/y cannot be made: "),
        (["--output", "{folder}/empty.txt"], "{folder}/empty.txt is a file, and pictures go into a folder; choose"),
        (["--output", "{folder}/empty.txt/deep/x"], "{folder}/empty.txt is a file, and pictures go into a folder"),
        (["--output", "a" * 300], "cannot be: File name too long; choose another --output"),
        (["--output", ""], "argument --output: an empty name is none"),
        (["--captions", "{folder}/empty.txt"], "line 2 of {folder}/empty.txt: the prompt is empty"),
        (["--captions", "{folder}/long.txt"], "line 3 of {folder}/long.txt: prompt has 2001 characters, the limit is"),
    ],
)
def test_bad_arguments_are_one_sentence_and_start_nothing(
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    lines(tmp_path, ["x", "", "y"], "empty.txt")
    lines(tmp_path, ["x", "y", "z" * 2001], "long.txt")
    good = ["--captions", str(lines(tmp_path, CAPTIONS)), "--output", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(subprocess, "Popen", no_start)
    with pytest.raises(SystemExit) as ended:
        main(["coco", *good, *(word.format(folder=tmp_path) for word in options)])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence.format(folder=tmp_path) in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def toy(folder: Path, captions: list[str], **how: Any) -> dict[str, Any]:
    """Pictures of the toy engine, by two ranks, in folder/out."""
    split = how.pop("split", None)
    task = coco.Task(
        captions=read_captions(lines(folder, captions)),
        split=split,
        folder=folder / "out",
        request=GenerationRequest(**{"prompt": "-", "seed": 0, "steps": 2, **how}),
        config=DistriConfig(warmup_steps=1),
        crew=Crew(ranks=2, device="cpu", model=str(toy_model(folder))),
    )
    return coco.make_pictures(task, began=time.monotonic(), script=TOY_RANK)


def test_a_dead_rank_ends_the_group_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, others = tmp_path / "out", set(descendants(os.getpid()))
    with pytest.raises(Failed, match=r"rank 1 was killed by signal 9; .*; 2 of 3 pictures are there, and the same"):
        toy(tmp_path, ["one", "two", "kill rank=1 step=1;"])
    assert set(descendants(os.getpid())) <= others
    assert json.loads((out / "run.json").read_text())["made"] == 2
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    assert sorted(before) == ["0000.png", "0001.png"]
    with pytest.raises(ValueError, match=r"made with steps 2, not 3; ask for the same, or choose another --output"):
        toy(tmp_path, ["one", "two", "three"], steps=3)
    with pytest.raises(ValueError, match=r"other captions: 0001\.png is of 'two' there and of 'three' in the"):
        toy(tmp_path, ["one", "three"])

    # Nothing is missing among the first two: nothing is started. Half a line of seconds is no obstacle.
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_start)
        toy(tmp_path, ["one", "two"])
    with (out / "seconds.jsonl").open("a") as file:
        file.write('{"picture": 2, "te')
    (out / "0001.png").write_bytes((out / "0001.png").read_bytes()[:-1])  # not whole, so it is made again
    report = toy(tmp_path, ["one", "two", "slow 10", "four"], split=(0, 1))
    assert [path.name for path in sorted(out.iterdir())] == [
        "0000.png", "0001.png", "0002.png", "0003.png", "captions.txt", "run.json", "seconds.jsonl",
    ]  # fmt: skip
    assert (out / "0000.png").stat().st_mtime_ns == before["0000.png"]
    assert (out / "captions.txt").read_text() == "one\ntwo\nslow 10\nfour\n"
    for index, caption in enumerate(["one", "two", "slow 10", "four"]):
        with Image.open(out / f"{index:04d}.png") as image:
            assert image.info["parameters"].startswith(
                f"{caption}\nSteps: 2, Sampler: DDIM, CFG scale: 5, Seed: {index}"
            )

    entries = {}
    for line in (out / "seconds.jsonl").read_text().splitlines():
        if line.endswith("}"):
            entry = json.loads(line)
            entries[entry["picture"]] = entry
    assert sorted(entries) == [0, 1, 2, 3]
    assert report == json.loads((out / "run.json").read_text())
    assert (report["count"], report["made"], report["ranks"], report["device"]) == (4, 4, 2, "cpu")
    assert report["seconds"]["save"] == pytest.approx(median(one["save"] for one in entries.values()), abs=1e-5)
    assert report["seconds"]["denoise"] == 0.1  # what the toy says
    assert report["seconds"]["total"] == pytest.approx(0.11 + report["seconds"]["save"], abs=1e-5)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "0000.png")
    with pytest.raises(ValueError, match=r"holds pictures, and no run\.json that says what they are"):
        toy(tmp_path, ["one"])
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        toy(tmp_path, ["one"])


def test_two_runs_of_one_part_are_refused_and_leftovers_go(tmp_path: Path) -> None:
    with pictures.at_work(tmp_path, (0, 2)) as via:
        (via / ".0000.png.half").touch()
        same = pictures.at_work(tmp_path, (0, 2))
        with pytest.raises(ValueError, match="another run is making these pictures"), same:
            raise AssertionError("the same part")
        assert list(via.iterdir()) == [via / ".0000.png.half"]
        with pictures.at_work(tmp_path, (1, 2)) as other:
            assert other != via
        left = tmp_path / ".part"
        left.mkdir()
        (left / ".0001.png.half").touch()
        with pictures.at_work(tmp_path, None) as whole:
            assert list(whole.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def undisturbed(folder: str) -> None:
    """On a rank: the pictures as the engine makes them one after another, in `folder`."""
    from distri_engine import open_mesh
    from launcher import png
    from launcher.process import load_engine

    config = DistriConfig(height=128, width=128, split_batch=False, warmup_steps=0)
    rank, world = config.rank, config.world_size
    engine = load_engine(str(DEMO_MODEL), "cpu", rank, world, "rank0")
    with open_mesh(config) as mesh:
        engine.attach(mesh)
        for seed, caption in enumerate(CAPTIONS):
            request = GenerationRequest(prompt=caption, seed=seed, height=128, width=128, steps=2)
            *_, finished = engine.generate(request, config)
            if rank == 0:
                chunks = png.chunks(request, config, model="embedded demo model", device="CPU", ranks=2)
                png.save(finished.images[0], Path(folder) / f"000{seed}.png", chunks)
        engine.detach()


def test_a_killed_run_goes_on_to_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--captions", str(lines(tmp_path, CAPTIONS)), "--output", str(out), "--ranks", "2", "--device", "cpu"]
    words += ["--height", "128", "--width", "128", "--steps", "2", "--warmup-steps", "0", "--no-split-batch"]
    command = [sys.executable, "-m", "launcher", "coco", *words]
    run = subprocess.Popen(command, cwd=ROOT)
    pids: list[int] = []
    try:
        until(lambda: (out / "0000.png").exists(), 90)
        pids = descendants(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, pids)), 40)
    finally:
        end(run, [run.pid, *pids, *descendants(run.pid)])
    assert len(pids) == 3
    assert len(pictures.numbers(out)) < len(CAPTIONS)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(f"{out}: 8 of 8 pictures, 2 steps, 2 x cpu, median ")
    names = [f"000{seed}.png" for seed in range(8)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "captions.txt", "run.json", "seconds.jsonl"]

    (whole := tmp_path / "undisturbed").mkdir()
    run_on_ranks(2, undisturbed, str(whole))
    assert [(out / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]
