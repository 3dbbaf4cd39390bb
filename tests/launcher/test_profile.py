"""`python -m launcher profile`: what it refuses, and that table and JSON say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.model import DEMO_MODEL


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ranks", "1,two"], "ranks '1,two' is not a list of numbers; write 1,2,4,8"),
        (["--ranks", ""], "ranks '' is not a list of numbers; write 1,2,4,8"),
        (["--plan", "--ranks", ""], "with --plan, ranks '' is not one number"),
        (["--plan", "--no-split-batch", "--parallelism", "tensor"], "--plan does not use --parallelism and --no-split"),
        (["--plan", "--split-scheme", "col"], "--plan does not use --split-scheme; leave that out"),
        (["--check-published", "--height", "512"], "--check-published does not use --height; leave that out"),
        (["--check-published", "--plan"], "--check-published does not use --plan; leave that out"),
        (["--ranks", "0"], "0 ranks are out of range; give numbers from 1 to 64"),
        (["--ranks", "2,9", "--height", "256"], "9 ranks cannot share 8 units of rows (height 256 is 8 x 32 pixels)"),
        (["--parallelism", "patch,magic"], "unknown parallelism 'magic'; choose one of: single, naive_patch, patch"),
        (["--mode", "quick"], "unknown mode 'quick'"),
        (["--steps", "0"], "steps 0 is out of range"),
        (["--width", "1000"], "width 1000 is not a multiple of 32; nearest: 992 or 1024"),
        (["--model", "sd15", "--width", "544"], "width 544 is not a multiple of 64; nearest: 512 or 576"),
        (
            ["--parallelism", "patch,paradigms"],
            "parallelism paradigms takes as many UNet evaluations as a picture needs",
        ),
        (["--warmup-steps", "auto"], "how long a warm-up of 'auto' takes depends on the picture"),
        (["--dtype", "int8"], "unknown dtype 'int8'; choose one of: float16, float32"),
        (["--tflops", "100"], "--tflops and --gbps are needed both"),
        (["--tflops", "100", "--gbps", "nan"], "gbps nan is not a positive number"),
        (["--plan", "--ranks", "1,2"], "with --plan, ranks '1,2' is not one number: that of the devices there are"),
        (["--plan", "--ranks", "65", "--tflops", "1", "--gbps", "1"], "65 ranks are out of range"),
        (["--plan", "--width", "1000", "--tflops", "1", "--gbps", "1"], "width 1000 is not a multiple of 32"),
        (["--json", "/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
        (
            ["--model", "/no/such/folder"],
            "has no unet/config.json; give one of sdxl, sd15, or a diffusers model folder",
        ),
        (["--model", "{folder}/damaged"], "config.json cannot be read: "),
        (["--model", "{folder}/other"], "does not describe a UNet2DConditionModel; give another model"),
        (["--model", "{folder}/impossible"], "makes no UNet: "),
        (["--model", "{folder}/strange"], "wants conditions other than text and sizes (class_embed_type: timestep)"),
    ],
)
def test_bad_arguments_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = json.loads((DEMO_MODEL / "unet" / "config.json").read_text())
    configs = {
        "damaged": "{",
        "other": json.dumps({"_class_name": "AutoencoderKL"}),
        "impossible": json.dumps(good | {"block_out_channels": [32]}),
        "strange": json.dumps(good | {"class_embed_type": "timestep"}),
    }
    for name, text in configs.items():
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "config.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["profile", *(word.format(folder=tmp_path) for word in options)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


def test_table_and_json_of_a_model_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    words = ["--model", str(DEMO_MODEL), "--ranks", "1,3", "--steps", "8", "--no-split-batch", "--json", str(file)]
    main(["profile", *words, "--tflops", "1", "--gbps", "8"])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    assert (report["height"], report["width"], report["dtype"]) == (256, 256, "float16")  # the model's own size
    assert report["machine"] == {"tflops": 1.0, "gbps": 8.0}
    rows = report["rows"]
    assert [(row["parallelism"], row["ranks"]) for row in rows[:5]] == [
        ("single", 1), ("naive_patch", 1), ("naive_patch", 3), ("patch", 1), ("patch", 3),
    ]  # fmt: skip
    header, *body = lines[-len(rows) - 1 :]
    # A little model on a little picture: in units that have something to show.
    assert header.split()[2:5] == ["G/picture", "least", "G/step"]
    assert body[0].split()[5:-1] == ["-"] * (len(body[0].split()) - 6)  # one device hears nothing and holds nothing
    for line, row in zip(body, rows, strict=True):
        assert float(line.split()[2].replace(",", "")) == pytest.approx(row["macs_per_picture"] / 1e9, abs=0.006)
        assert line.split()[:2] == [row["parallelism"], str(row["ranks"])]
        assert len(line) == len(header)
        assert line.split()[-1] == f"{row['seconds']:,.2f}"
    patch = rows[4]
    assert set(patch["received_per_step"]) == {"halo", "gather", "stats", "output"}
    assert sum(kind["elements"] for kind in patch["received_per_step"].values()) == patch["received_per_step_elements"]
    assert patch["macs_per_picture"] > patch["macs_per_picture_least"] > 0  # 8 units of rows on three ranks
    assert [step["times"] for step in patch["unlike_ranks"][0]["steps"]] == [1, 4, 3]
    assert patch["macs_per_picture"] < rows[0]["macs_per_picture"] / 2
    assert rows[0]["received_per_step"] == {}
    # The bytes of the same picture in float32, but for the moments.
    main(["profile", *words, "--dtype", "float32", "--parallelism", "patch", "--ranks", "3"])
    twice = json.loads(file.read_text())["rows"][0]
    assert twice["weight_bytes"] == 2 * patch["weight_bytes"]
    for kind, factor in (("gather", 2), ("halo", 2), ("stats", 1)):
        assert twice["buffer_bytes"][kind] == factor * patch["buffer_bytes"][kind]
    assert twice["seconds"] is None


def test_plan_is_one_sentence_and_says_what_it_rests_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    words = ["--plan", "--tflops", "163", "--gbps", "368", "--height", "1024", "--width", "1024", "--json", str(file)]
    main(["profile", *words, "--ranks", "8"])
    sentence, *machine = capsys.readouterr().out.splitlines()
    pattern = (
        r"Using patches and guidance split on 8 of 8 devices, (1\.\d\d) s: "
        r"\d\.\dx faster than one device is expected at 1024 x 1024\."
    )
    found = re.fullmatch(pattern, sentence)
    assert found, sentence
    assert machine[0] == "Given: 163 TFLOP/s, 368 Gbit/s between devices."
    assert machine[1].startswith("Assumed, an A100's: ")
    report = json.loads(file.read_text())
    assert report["sentence"] == sentence
    first, *others = report["candidates"]
    assert first | {"seconds": 0} == {
        "parallelism": "patch", "ranks": 8, "split_batch": True, "seconds": 0, "measured": 0,
    }  # fmt: skip
    assert first["seconds"] == pytest.approx(float(found[1]), abs=0.006)
    assert len(others) == 1 + 10 + 10  # tensor parallelism on 2 devices with guidance split is no other way
    main(["profile", "--plan", "--tflops", "163", "--gbps", "6", "--ranks", "8"])  # links of three quarters of a GB/s
    assert capsys.readouterr().out.startswith("Using guidance split over 2 of 8 devices, ")


def test_published_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    main(["profile", "--check-published", "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    cells = json.loads(file.read_text())["cells"]
    assert len(cells) == 21
    rows = [line for line in lines if line.endswith("%")]
    for cell in cells:  # each has its reason
        (reason,) = [line for line in lines if cell["why"] and line.endswith(f": {cell['why']}.")]
        assert reason.startswith(f"{cell['system']} (")
        assert f"{cell['devices']} at {cell['side']} {100 * cell['error']:+.1f} %" in reason
    assert [line.split()[0] for line in rows] == [cell["system"] for cell in cells]
    for line, cell in zip(rows, cells, strict=True):
        assert float(line.split()[4]) == pytest.approx(cell["predicted"], abs=0.006)
        assert line.split()[5] == f"{100 * (cell['predicted'] / cell['published'] - 1):+.1f}%"
