"""`python -m launcher benchmark`: what it refuses, which rows it makes, what its figures mean, and that it leaves no
process behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.evaluation.timing import Run, StepTime
from distri_engine.request import GenerationRequest
from launcher import benchmark_crew
from launcher.__main__ import main
from launcher.benchmark_report import report_rows
from launcher.benchmark_rows import Row, Wish, engine_rows, stock_rows
from launcher.benchmark_table import table
from tests.engine.test_engine import almost_equal
from tests.support.processes import alive, descendants, end, toy_model, until

ROOT = Path(__file__).parents[2]
TOY = (str(ROOT / "tests" / "support" / "toy_benchmark.py"),)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ranks", "1,two"], "ranks '1,two' is not a list of numbers; write 1,2,4,8"),
        (["--ranks", "1,9"], "9 ranks cannot share 8 units of rows (height 256 is 8 x 32 pixels); use at most 8 ranks"),
        (["--ranks", "65"], "65 ranks are out of range; give numbers from 1 to 64"),
        (["--parallelism", "patch,magic"], "unknown parallelism 'magic'; choose one of: single, naive_patch, patch"),
        (["--parallelism", "paradigms", "--scheduler", "euler"], "needs the steps of DDIM"),
        (["--mode", "no_sync,quick"], "unknown mode 'quick'"),
        (["--split-batch", "on,maybe"], "unknown split_batch 'maybe'; choose of: on, off"),
        (["--warmup-steps", "soon"], "warmup_steps 'soon' is not a number of steps"),
        (["--height", "1000"], "height 1000 is not a multiple of 32; nearest: 992 or 1024"),
        (["--steps", "0"], "steps 0 is out of range"),
        (["--scheduler", "ancestral"], "unknown scheduler 'ancestral'"),
        (["--warmup-times", "-1"], "warmup_times -1 is out of range"),
        (["--test-times", "0"], "test_times 0 is out of range; give a number from 1"),
        (["--ignore-ratio", "1"], "ignore_ratio 1 leaves no run to measure; give a share below 1"),
        (["--minutes", "-1"], "minutes -1 is out of range"),
        (["--ignore-ratio", "nan"], "ignore_ratio nan is not a finite number"),
        (["--threads-per-rank", "0"], "threads_per_rank 0 is out of range"),
        (["--output-type", "np"], "unknown output type 'np'; choose one of: latent, pil"),
        (["--baseline", "none,diffusers"], "unknown baseline 'none,diffusers'; choose one of: diffusers, none"),
        (["--output-type", "latent", "--pictures", "."], "--pictures needs pictures"),
        (["--pictures", "/no/such/folder"], "the folder /no/such/folder does not exist"),
        (["--json", "/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
        (["--text-encoder-on", "1"], "unknown text_encoder_on '1'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--model", "/"], "has no model_index.json"),
    ],
)
def test_bad_arguments_are_one_sentence_and_start_nothing(
    options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "--device", "cpu", *options])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


def rows_of(wish: str, *, guidance: float = 5.0) -> list[str]:
    """Names of the rows for "methods modes splits ranks"."""
    methods, modes, splits, ranks = (part.split(",") for part in wish.split())
    request = GenerationRequest(prompt="-", height=256, width=256, guidance_scale=guidance)
    asked = Wish(
        methods=[Parallelism(one) for one in methods],
        modes=[SyncMode(one) for one in modes],
        splits=[one == "on" for one in splits],
        ranks=[int(one) for one in ranks],
    )
    return [row.name for row in engine_rows(asked, request, DistriConfig(), 1)]


def test_rows_are_what_differs() -> None:
    assert rows_of("patch full_sync on 1,2") == ["patch-1", "patch-split-2"]
    # Modes need peers in the same guidance branch, a guidance branch of its own an even number of ranks.
    assert rows_of("patch,naive_patch full_sync,no_sync on,off 1,2,3,4") == [
        "patch-1",
        "patch-split-2", "patch-full_sync-2", "patch-no_sync-2", "naive_patch-2",
        "patch-full_sync-3", "patch-no_sync-3", "naive_patch-3",
        "patch-full_sync-split-4", "patch-no_sync-split-4", "patch-full_sync-4", "patch-no_sync-4",
        "naive_patch-split-4", "naive_patch-4",
    ]  # fmt: skip
    assert rows_of("patch,naive_patch full_sync on,off 2", guidance=1) == ["patch-full_sync-2", "naive_patch-2"]
    # `single` is one rank, and what others are on one rank.
    assert rows_of("single full_sync on 2,4") == ["single-1"]
    assert rows_of("naive_patch,tensor full_sync off 1,2") == ["single-1", "naive_patch-2", "tensor-2"]
    assert rows_of("single,patch,tensor full_sync off 1,2") == ["single-1", "patch-1", "patch-full_sync-2", "tensor-2"]
    assert rows_of("paradigms full_sync on,off 1,2") == ["single-1", "paradigms-2"]
    assert [row.name for row in stock_rows(1, 2)] == ["diffusers-1-thread", "diffusers-2-threads"]
    assert [row.name for row in stock_rows(4, 2)] == ["diffusers-4-threads"]


def test_figures_of_rows_and_their_table() -> None:
    one, other = (
        Row(config=DistriConfig(ranks=ranks), ranks=ranks, threads=1, mode=mode)
        for ranks, mode in ((1, None), (2, SyncMode.NO_SYNC))
    )
    rows = [*stock_rows(1, 2), one, other]

    def made(total: float, *waits: float) -> Run:
        steps = tuple((StepTime(stale=True, compute_ms=6, wait_ms=wait),) for wait in waits)
        return Run(total_s=total, seconds=dict.fromkeys(("text", "denoise", "decode", "save"), total / 4), steps=steps)

    runs = [
        [made(total * share, *waits) for share in (1, 2, 0.5)]
        for total, waits in ((8, (0,)), (5, (0,)), (6, (0,)), (4, (2, 4)))
    ]
    stock, all_cores, alone, together = report_rows(rows, runs, 0.0)
    assert [(row["parallelism"], row["mode"], row["ranks"], row["threads_per_rank"]) for row in (stock, together)] == [
        ("diffusers", None, 1, 1), ("patch", "no_sync", 2, 1),
    ]  # fmt: skip
    assert (together["median_s"], together["min_s"], together["max_s"]) == (4, 2, 8)
    assert together["all_s"] == [4, 8, 2]
    assert together["steady_step_ms"] == 10
    assert (together["exposed_wait_ms"], together["exposed_wait_share"]) == (4, 0.4)
    assert [rank["wait_share"] for rank in together["steady_ranks"]] == [0.25, 0.4]
    factors = ("speedup_vs_one_rank", "speedup_vs_baseline", "speedup_vs_baseline_all_cores", "efficiency")
    assert [together[name] for name in factors] == [1.5, 2, 1.25, 0.75]
    assert [alone[name] for name in factors] == [1, 8 / 6, 5 / 6, 1]
    assert [all_cores[name] for name in factors] == [1.2, 1.6, 1, None]
    assert [report_rows(rows[3:], runs[3:], 0.0)[0][name] for name in factors] == [None] * 4

    settings = {"model": "m", "width": 64, "height": 96, "steps": 1, "scheduler": "ddim", "guidance_scale": 1.0}
    settings |= {"warmup_steps": 4, "output_type": "pil", "warmup_times": 0, "test_times": 3, "ignore_ratio": 0.0}
    machine = {"cpu": "c", "cores": 2, "threads_per_rank": 1, "devices": ["CPU", "CPU"], "load_average": 0.0}
    machine |= {"torch": "2", "diffusers": "1"}
    report = {
        "machine": machine,
        "settings": settings,
        "rounds": 2,
        "took_s": 1.0,
        "rows": [stock, all_cores, alone, together],
    }
    assert "the machine was busy (load 2 before)" in table(report | {"machine": machine | {"load_average": 2.0}})
    assert "busy" not in table(report)
    assert "2 of 3 rounds after 0 of warm-up; 1 s in all" in table(report)
    header, *lines = table(report).splitlines()[-5:]
    assert {len(line) for line in lines} == {len(header)}
    assert lines[-1].split() == [
        *("patch", "no_sync", "-", "2", "1", "4.00", "2.00", "8.00", "1.000", "1.000", "1.000", "1.000"),
        *("10.0", "4.00", "40.0", "1.50", "2.00", "1.25", "75", "%"),
    ]  # fmt: skip


def toy_options(folder: Path, prompt: str) -> list[str]:
    words = ["--prompt", prompt, "--ranks", "2", "--device", "cpu", "--model", str(toy_model(folder))]
    return ["benchmark", *words, "--height", "64", "--width", "64", "--steps", "4", "--warmup-times", "1"]


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a benchmark that ends with exit code 1 and leaves nobody behind."""
    before = descendants(os.getpid())
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 1
    until(lambda: set(descendants(os.getpid())) <= set(before), 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_who_fails_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_crew, "WORKER", TOY)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed = toy_options(tmp_path, "kill rank=1 step=2;")
    assert "rank 1 was killed by signal 9" in failure(capsys, *killed, "--baseline", "none")
    # The toy's weights load for the toy alone.
    assert "toy_model cannot be opened as an SDXL pipeline" in failure(capsys, *toy_options(tmp_path, "a toy"))


def test_ending_the_command_ends_everybody(tmp_path: Path) -> None:
    code = "import sys; from launcher import benchmark_crew, __main__\n"
    code += f"benchmark_crew.WORKER = {TOY!r}; __main__.main(sys.argv[1:])"
    words = [*toy_options(tmp_path, "slow 200"), "--baseline", "none", "--test-times", "1000"]
    with contextlib.ExitStack() as stack:
        started = {}
        for how in (signal.SIGKILL, signal.SIGINT):  # side by side
            tmp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
            env = {**os.environ, "TMPDIR": str(tmp)}
            run = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, env=env, stderr=subprocess.PIPE)
            pids: list[int] = []
            stack.callback(lambda run=run, pids=pids: end(run, [run.pid, *pids, *descendants(run.pid)]))
            started[how] = (run, pids, tmp)
        for run, pids, tmp in started.values():
            until(lambda tmp=tmp: list(tmp.glob("distrifusion-*/patch-*.png")), 300)  # the ranks are at work
            pids += descendants(run.pid)
            assert len(pids) == 3
        for how, (run, pids, tmp) in started.items():
            os.kill(run.pid, how)
            _, said = run.communicate(timeout=40)
            assert (run.returncode, said) == ((130, b"") if how is signal.SIGINT else (-how, b""))
            until(lambda pids=pids: not any(map(alive, pids)), 40)
            left = [path.name.split("-")[0] for path in tmp.iterdir()]
            assert left == ([] if how is signal.SIGINT else ["distrifusion"])  # which the next command removes


def test_the_real_engine_beside_diffusers(tmp_path: Path) -> None:
    # Different numbers of ranks take turns, and each finds what it needs again: 2 ranks between 3 and 3.
    words = ["--parallelism", "single,patch", "--ranks", "1,2,3", "--no-split-batch", "--warmup-steps", "0"]
    words += ["--device", "cpu", "--threads-per-rank", "1", "--height", "96", "--width", "64", "--steps", "2"]
    words += ["--warmup-times", "1", "--minutes", "0", "--json", "b.json", "--pictures", "."]
    run = subprocess.run(
        [sys.executable, "-m", "launcher", "benchmark", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (run.returncode, run.stderr) == (0, "")
    report = json.loads((tmp_path / "b.json").read_text())
    assert run.stdout == table(report) + "\n"
    assert list(report) == ["machine", "settings", "rounds", "took_s", "rows"]
    assert (report["rounds"], report["settings"]["test_times"]) == (1, 20)  # the time is up after the first one
    assert list(report["machine"]) == [
        "cpu", "cores", "threads_per_rank", "devices", "python", "torch", "diffusers", "load_average",
    ]  # fmt: skip
    assert report["machine"]["devices"] == ["CPU"] * 3
    assert (report["settings"]["model"], report["settings"]["width"]) == ("embedded demo model", 64)
    rows = report["rows"]
    ours = [row for row in rows if row["parallelism"] != "diffusers"]
    assert [(row["parallelism"], row["mode"], row["ranks"]) for row in ours] == [
        ("single", None, 1), ("patch", None, 1),
        ("patch", "corrected_async_gn", 2), ("patch", "corrected_async_gn", 3),
    ]  # fmt: skip
    assert rows[0]["threads_per_rank"] == 1
    for row in rows:
        _check_row(row, one_rank=ours[1], stock=rows[0])
    pictures = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    assert len(pictures) == len(rows)
    stock = pictures["diffusers-1-thread"]
    assert stock.shape == (96, 64, 3)
    assert almost_equal(pictures["single-1"], stock)
    assert almost_equal(pictures["patch-1"], stock)
    for ranks in (2, 3):
        assert not np.array_equal(pictures[f"patch-corrected_async_gn-{ranks}"], stock)


def _check_row(row: dict[str, Any], *, one_rank: dict[str, Any], stock: dict[str, Any]) -> None:
    assert list(row) == [
        "parallelism", "mode", "split_batch", "ranks", "threads_per_rank", "runs",
        "median_s", "min_s", "max_s", "mean_s", "seconds", "steady_step_ms", "exposed_wait_ms", "exposed_wait_share",
        "steady_ranks", "speedup_vs_one_rank", "speedup_vs_baseline", "speedup_vs_baseline_all_cores", "efficiency",
        "all_s",
    ]  # fmt: skip
    assert list(row["seconds"]) == ["text", "denoise", "decode", "save"]
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert sum(row["seconds"].values()) <= row["median_s"] + 1e-5
    assert 0 < row["steady_step_ms"] <= 1e3 * row["seconds"]["denoise"]
    assert len(row["steady_ranks"]) == row["ranks"]
    assert (row["exposed_wait_ms"] > 0) == (row["ranks"] > 1)
    assert row["speedup_vs_one_rank"] == pytest.approx(one_rank["median_s"] / row["median_s"], rel=1e-3)
    assert row["speedup_vs_baseline"] == pytest.approx(stock["median_s"] / row["median_s"], rel=1e-3)
