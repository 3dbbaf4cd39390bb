"""The measurement of a demo pipeline: what its tables say of pictures whose truth is known, and that pictures made in
batches, by ranks together or each for itself, are those of one device, one by one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from PIL import Image

from assets.demo_training import contact_sheet, measure, negative
from assets.demo_training.grammar import sample_scene
from assets.demo_training.held_out import held_out
from assets.demo_training.measured_pictures import Task, make
from assets.demo_training.painter import paint
from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL

CAPTIONS = ["a red house on green hills at night", "a blue sailboat on the sea", "snow"]
SIZE = {"height": 64, "width": 96}


def test_table_of_pictures_whose_truth_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True pictures are right, and those of other captions wrong where the captions differ."""
    monkeypatch.setattr(measure, "make", lambda *_, **__: None)
    scenes = [scene for _, scene in held_out(12)]
    for name, shift in (("single", 0), ("naive-2", 1)):
        (tmp_path / name).mkdir()
        for index in range(12):
            picture = Image.fromarray(paint(scenes[(index + shift) % 12], 128))
            picture.save(tmp_path / name / f"{index:04d}.png")
    words = ["--folder", str(tmp_path), "--count", "12", "--runs", "single", "naive-2"]
    right, wrong = measure.main(measure.parse_options(words))
    assert right["attributes"] >= 95
    assert wrong["subject"] <= 60, "one in four is right by chance"
    assert wrong["psnr"] < 20
    assert "psnr" not in right
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["attributes"] == right["attributes"]
    sheet = ["--folder", str(tmp_path), "--output", str(tmp_path / "sheet.jpg"), "--columns", "single", "naive-2"]
    contact_sheet.main(
        contact_sheet.parse_options([*sheet, "--titles", "one", "naive", "--count", "4", "--side", "32"])
    )
    width, height = Image.open(tmp_path / "sheet.jpg").size
    assert width >= 2 * 2 * 32
    assert height >= 2 * 32


def test_pictures_are_not_taken_for_those_of_another_run(tmp_path: Path) -> None:
    def note(**changes: object) -> None:
        task = {"captions": ["a", "b"], "steps": 30, "height": 256, "folder": "x", "batch": 2, "model": "w"}
        measure.keep_note(tmp_path, task | changes)

    note()
    (tmp_path / "0000.png").touch()
    note(batch=9, folder="y", captions=["a"])  # fewer
    note(captions=["a", "b", "c"])  # more
    assert json.loads((tmp_path / measure.NOTE).read_text())["captions"] == ["a", "b", "c"]
    for changes, what in (
        ({"height": 512}, "height"),
        ({"model": "v"}, "model"),
        ({"captions": ["b"]}, "captions"),
    ):
        with pytest.raises(SystemExit, match=f"made with other {what}; choose another --folder"):
            note(**changes)
    assert measure.digest(DEMO_MODEL) == measure.digest(DEMO_MODEL) != measure.digest(DEMO_MODEL / "vae")


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    words = ["--pipeline", str(tmp_path / "nothing"), "--folder", str(tmp_path / "made"), "--count", "1"]
    options = measure.parse_options([*words, "--processes", "1"])
    with pytest.raises(SystemExit, match=r"no pictures for .*Error"):
        measure.make(options, options.folder, measure.RUNS["single"], ["a house"])


def test_negative_prompts_are_judged_by_what_is_still_there(tmp_path: Path) -> None:
    """Every second picture shows what is not wanted without the negative prompt, and none with it."""
    for refusal in negative.REFUSALS:
        rng = np.random.default_rng(3)
        scenes = [sample_scene(rng) for _ in range(300)]
        shown = [(getattr(scene, refusal.question) or "none") == refusal.answer for scene in scenes]
        have = [scene for scene, there in zip(scenes, shown, strict=True) if there][:4]
        lack = [scene for scene, there in zip(scenes, shown, strict=True) if not there][:8]
        work = tmp_path / refusal.prompt
        mixed = [one for pair in zip(have, lack[4:], strict=True) for one in pair]
        for name, some in (("open", mixed), (refusal.prompt.replace(", ", "-").replace(" ", "-"), lack)):
            (work / name).mkdir(parents=True)
            for index, scene in enumerate(some):
                Image.fromarray(paint(scene, 128)).save(work / name / f"{index:04d}.png")
        words = ["--folder", str(work), "--count", "8"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(negative, "REFUSALS", (refusal,))
            patch.setattr(negative, "make", lambda *_, **__: None)
            (row,) = negative.main(negative.parse_options(words))
        assert row["negative"] == refusal.prompt
        assert row["without"] >= row["with"] + 30, row  # 50 and 0, but for what the judge mistakes at this size
        assert json.loads((work / "table.json").read_text())["rows"] == [row]
    assert len(set(negative.captions(60))) == 60


def test_batches_of_ranks_are_the_pictures_of_one_device(tmp_path: Path) -> None:
    task = {"pipeline": str(DEMO_MODEL), "captions": CAPTIONS, "steps": 2, "batch": 2, **SIZE}
    folders = {name: str(tmp_path / name) for name in ("single", "patch", "naive", "negative")}
    kinds: dict[str, dict[str, Any]] = {
        "single": {"config": None},
        "patch": {"config": {"warmup_steps": 2}},
        "naive": {"config": {"parallelism": "naive_patch"}},
        "negative": {"config": None, "negative": "hills"},
    }
    run_on_ranks(2, make_all, [{**task, "folder": folders[name], **kinds[name]} for name in folders])
    pipeline = StableDiffusionXLPipeline.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    changed = []
    for index, caption in enumerate(CAPTIONS):
        seeded = torch.Generator().manual_seed(index)
        alone = pipeline(caption, **SIZE, num_inference_steps=2, guidance_scale=5.0, generator=seeded).images[0]
        for name, most in (("single", 2), ("patch", 2)):  # of 255: batches round differently
            made = np.asarray(Image.open(tmp_path / name / f"{index:04d}.png")).astype(int)
            assert np.abs(made - np.asarray(alone)).max() <= most, (name, index)
        refused = pipeline(
            caption,
            negative_prompt="hills",
            **SIZE,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(index),
        ).images[0]
        made = np.asarray(Image.open(tmp_path / "negative" / f"{index:04d}.png")).astype(int)
        assert np.abs(made - np.asarray(refused)).max() <= 2
        changed.append(np.abs(made - np.asarray(alone)).max())
        naive = np.asarray(Image.open(tmp_path / "naive" / f"{index:04d}.png")).astype(int)
        assert np.abs(naive - np.asarray(alone)).max() > 10
    assert max(changed) > 10  # one of them is all black after two steps, with the negative prompt and without
    assert sorted(os.listdir(folders["patch"])) == ["0000.png", "0001.png", "0002.png"]


def make_all(tasks: list[dict[str, Any]]) -> None:
    """On a rank."""
    for task in tasks:
        make(Task(**task))
