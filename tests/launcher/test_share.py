"""`python -m launcher benchmark --share-of`: what it refuses, and that its rows are those that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.__main__ import main
from tests.support.models import DEMO_MODEL


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--share-of", "two"], "ranks 'two' is not a list of numbers"),
        (["--share-of", "2", "--dtype", "int8"], "unknown dtype 'int8'; choose one of: float16, bfloat16, float32"),
        (["--share-of", "2", "--compile", "all"], "unknown compile 'all'; choose of: whole, blocks"),
        (["--share-of", "2", "--sizes", "1k"], "sizes '1k' is not a number of pixels; write 1024,2048,3840"),
        (["--share-of", "2", "--sizes", "1000"], "height 1000 is not a multiple of 32"),
        (["--share-of", "2", "--sizes", "1024", "--height", "512"], "say the same twice"),
        (["--share-of", "2", "--parallelism", "paradigms"], "paradigms shares no step out"),
        (["--share-of", "2", "--split-batch", "half"], "unknown split_batch 'half'; choose of: on, off"),
        (["--share-of", "2", "--prompt", "x", "--ranks", "1"], "--share-of does not use --ranks and --prompt; leave"),
        (
            ["--sizes", "64", "--dtype", "float16"],
            "benchmark without --share-of does not use --sizes and --dtype; leave",
        ),
        (["--share-of", "2", "--model", "there"], "--model there has no use with --share-of"),
        (["--share-of", "2", "--random-weights", "/nothing"], "model /nothing has no unet/config.json"),
    ],
)
def test_bad_arguments_are_one_sentence(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "--device", "cpu", *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in error
    assert error.count("\n") == 1


def test_every_row_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "share.json"
    words = ["--share-of", "2,4", "--random-weights", str(DEMO_MODEL), "--sizes", "128,160", "--device", "cpu"]
    words += ["--split-batch", "on,off", "--warmup-times", "0", "--test-times", "1", "--json", str(file)]
    main(["benchmark", *words])
    rows = json.loads(file.read_text())["rows"]
    printed = capsys.readouterr().out
    for side in (128, 160):
        some = [row for row in rows if (row["height"], row["width"]) == (side, side)]
        steps = [(row["parallelism"], row["ranks"], row.get("split_batch")) for row in some if row["part"] == "step"]
        ours = [(1, False), (2, True), (2, False), (4, True), (4, False)]
        assert steps == [("diffusers", 1, None), *(("patch", *each) for each in ours)]
        decodes = [(row["parallelism"], row["ranks"]) for row in some if row["part"] == "decode"]
        assert decodes == [("diffusers", 1), ("patch", 1), ("patch", 2), ("patch", 4)]
        assert [row["times_diffusers"] for row in some if row["parallelism"] == "diffusers"] == [1, 1]
        assert f"{side} x {side}" in printed
    assert all(0 < row["min_s"] <= row["median_s"] <= row["max_s"] for row in rows)
