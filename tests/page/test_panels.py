"""What the panels say, from states alone: cards, sentence, header, lanes, strip, gallery, settings."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher.schema import Lane, Record, Status, Update
from launcher.web import cards, gallery, header, lanes, pictures, settings, stage
from launcher.web.take import Take
from tests.support.fake_client import MODEL

IDLE = Status(state="idle", message="", ranks=2, device="CPU", model=MODEL, queue=0, restarts=0)


def take(
    folder: Path, method: str, seconds: float, shade: int, *, wait_ms: float = 0.0, side: int = 64, **config: Any
) -> Take:
    """A finished picture of one colour."""
    path = folder / f"{method}.png"
    Image.new("RGB", (side, side), (shade, shade, shade)).save(path)
    request = GenerationRequest(prompt="x", height=side, width=side, seed=1)
    ranks = [{"compute_ms": 90.0, "wait_ms": wait_ms, "sent_bytes": 0}, {"compute_ms": 50.0, "wait_ms": 0.0}]
    return Take(
        id=method,
        method=method,
        picture=str(path),
        request=dataclasses.asdict(request),
        config=dataclasses.asdict(DistriConfig(parallelism=method, split_batch=False, **config)),
        report={
            "ranks": 2,
            "seconds": {"text": 0.0, "denoise": 0.9 * seconds, "decode": 0.1 * seconds, "total": seconds + 1},
            "steps": [{"step": 0, "phase": "sync", "ranks": ranks}],
        },
    )


def test_cards_and_story(tmp_path: Path) -> None:
    takes = {
        "patch": take(tmp_path, "patch", 2.0, 101, wait_ms=10),
        "naive_patch": take(tmp_path, "naive_patch", 5.0, 150),
        "single": take(tmp_path, "single", 4.0, 100),
    }
    alone, naive, ours = cards.cards(takes)["cards"]
    assert [card["seconds"] for card in (alone, naive, ours)] == ["4.00", "5.00", "2.00"]
    assert ours["badge"] == {"text": "2.00× faster", "tone": "good"}
    assert naive["badge"] == {"text": "1.25× slower", "tone": "bad"}
    assert "badge" not in alone
    assert "PSNR 48.1 dB" in ours["note"]
    assert sum(part["share"] for part in naive["parts"]) == pytest.approx(1)
    assert cards.story(takes) == (
        "DistriFusion took 50 % of one device's time; 10 % of its denoising was waiting for peers; decoding was 10 % "
        "of the whole. Against one device's picture it scores 48.1 dB PSNR, naive patches 14.2 dB (higher is closer)."
    )


def test_lpips_is_told_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_lpips", lambda: lambda a, b: 0.0123)
    for side, note in ((64, "· LPIPS 0.012"), (32, "against 1 device")):  # its network takes none smaller
        takes = {name: take(tmp_path, name, 2.0, side, side=side) for name in ("patch", "single")}
        assert cards.cards(takes)["cards"][2]["note"].endswith(note)
        pictures.likeness.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "find_spec", lambda _: None)
    pictures._lpips.cache_clear()
    assert pictures._lpips() is None


def test_tensor_parallel_takes_the_place_of_distrifusion(tmp_path: Path) -> None:
    takes = {"tensor": take(tmp_path, "tensor", 3.0, 100), "single": take(tmp_path, "single", 4.0, 100)}
    shown = cards.cards(takes)
    assert [card["name"] for card in shown["cards"]] == ["1 device", "Naive patch", "Tensor parallel"]
    assert "∞ dB (equal)" in shown["cards"][2]["note"]
    assert shown["story"].startswith("Tensor parallel took 75 % of one device's time")
    assert cards.cards({}, running="tensor", waiting=["single"])["cards"][2]["state"] == "running"
    assert takes["tensor"].boxes() == ()


def test_story_of_a_single_picture_and_of_a_slow_one(tmp_path: Path) -> None:
    ours = take(tmp_path, "patch", 2.0, 100)
    assert cards.story({"patch": ours}).startswith("DistriFusion took 2.00 s; 0 % of its denoising")
    slow = cards.story({"patch": ours, "single": take(tmp_path, "single", 1.0, 100)})
    assert "200 % of one device's time (sharing this picture did not pay here)" in slow
    assert "∞ dB (equal)" in slow
    assert cards.story({}) == ""


def test_cards_while_running(tmp_path: Path) -> None:
    takes = {"patch": take(tmp_path, "patch", 2.0, 100)}
    shown = cards.cards(takes, running="naive_patch", waiting=["single"])
    assert [card["state"] for card in shown["cards"]] == ["waiting", "running", "done"]
    both = cards.cards({}, running="patch", waiting=["naive_patch", "single"])["cards"]
    assert [card["note"] for card in both[:2]] == ["comes last", "comes next"]
    assert shown["story"] == ""


@pytest.mark.parametrize(
    ("changes", "state", "badge"),
    [
        ({}, "ready", "2 CPU ranks ready"),
        ({"ranks": 1}, "ready", "1 CPU rank ready"),
        ({"ranks": 4, "device": "NVIDIA H200"}, "ready", "4 × NVIDIA H200 ready"),
        ({"state": "boot", "model": None, "device": ""}, "loading", "Loading the model on 2 ranks"),
        ({"state": "boot", "model": None, "device": "", "ranks": 1}, "loading", "Loading the model on 1 rank"),
        ({"state": "joining"}, "busy", "Generating"),
        ({"state": "joining", "restarts": 1}, "busy", "Generating"),
        ({"state": "running", "queue": 3}, "busy", "Generating · 2 waiting"),
        ({"state": "rejoin"}, "lost", "Restarting the workers"),
        ({"state": "boot", "model": None, "restarts": 1}, "lost", "Restarting the workers"),
        ({"state": "dead", "model": None, "last_error": "no such folder"}, "dead", "Stopped working"),
    ],
)
def test_header_is_honest(changes: dict[str, Any], state: str, badge: str) -> None:
    shown = header.header(dataclasses.replace(IDLE, **changes), own=1 if changes.get("queue") else 0)
    assert (shown["state"], shown["badge"]) == (state, badge)
    if state == "dead":
        assert shown["notice"]["text"] == "no such folder"
    assert shown["devices"] == {"": "", "NVIDIA H200": "4 × NVIDIA H200"}.get(changes.get("device", "CPU"), "CPU")
    assert len(shown["brief"]) <= len("2 CPU ranks ready")  # what has room on a phone


@pytest.mark.parametrize(
    ("device", "names"),
    [("", ["rank 0", "rank 1"]), ("CPU", ["CPU rank 0", "CPU rank 1"]), ("NVIDIA H200", ["GPU 0", "GPU 1"])],
)
def test_sleeping_lanes_are_called_what_they_are(device: str, names: list[str]) -> None:
    resting = lanes.resting(dataclasses.replace(IDLE, device=device), "ready")
    assert [lane["name"] for lane in resting["lanes"]] == names
    assert {lane["status"] for lane in resting["lanes"]} == {"sleeping"}


def _lane(rank: int, box: tuple[int, int, int, int] | None, branch: str = "both") -> Lane:
    return Lane(
        rank=rank,
        device="CPU",
        box=box,
        branch=branch,
        step=2,
        compute_ms=30,
        wait_ms=10,
        sent_bytes=1_200_000,
        memory_mb=400,
        median_ms=40,
        history=((30, 10), (30, 10)),
    )


def test_lanes_make_room_for_the_steps_that_are_needed() -> None:
    lane = dataclasses.replace(_lane(0, (0, 0, 256, 256)), step=6)  # two iterations did six timesteps
    update = Update(id="1", state="running", message="", step=6, steps=9, lanes=(lane,), config={"parallelism": "x"})
    assert lanes.live(update)["steps"] == 5
    assert lanes.live(update)["lanes"][0]["status"] == "step 6 / 9"
    done = dataclasses.replace(update, state="done", step=9, lanes=(dataclasses.replace(lane, step=9),))
    assert lanes.live(done)["steps"] == 2


@pytest.mark.parametrize(
    ("mode", "meaning"),
    [
        ("corrected_async_gn", "So far off is what a stale step uses of the others."),
        ("extrapolated", "So far off are stale values; foresight makes up for part of it."),
        ("full_sync", "Every step waited for fresh values: nothing was off."),
    ],
)
def test_how_far_activations_moved(mode: str, meaning: str) -> None:
    update = Update(id="1", state="running", message="", steps=9, config={"parallelism": "patch", "mode": mode})
    for nothing in (update, dataclasses.replace(update, changes=(None,), phases="S")):
        assert (lanes.live(nothing)["drift"]["values"], lanes.live(nothing)["drift"]["meaning"]) == ([], meaning)
    naive = dataclasses.replace(update, config={"parallelism": "naive_patch", "mode": mode})
    assert lanes.live(naive)["drift"]["meaning"] == "This method passes no activations on."
    warm = lanes.live(dataclasses.replace(update, changes=(None, 0.48), phases="SS"))["drift"]
    assert (warm["text"], warm["values"]) == ("48 %", [None, 0.48])
    changes = (None, 0.48, 0.0341, 0.02, 0.08)
    assert lanes.live(dataclasses.replace(update, changes=changes, phases="SSddd"))["drift"] == {
        "values": [*changes],
        "text": "3.4 % in stale steps",
        "meaning": meaning,
        "alt": "Activations moved by 48 % from the first step to the second, lately by 3.4 % in stale steps",
    }


def test_lanes_and_strip() -> None:
    request = {"height": 256, "width": 256}
    update = Update(
        id="1",
        state="running",
        message="",
        step=2,
        steps=9,
        phases="Sd",
        lanes=(
            dataclasses.replace(_lane(0, (0, 0, 256, 160), "conditional"), buffer_mb=3.0, load=97.4),
            dataclasses.replace(_lane(1, (0, 160, 256, 256), "conditional"), device="NVIDIA H200", load=88.0),
            _lane(2, None, "none"),
        ),
        request=request,
        config={"parallelism": "patch"},
    )
    first, second, unused = lanes.live(update)["lanes"]
    assert (first["name"], first["part"]) == ("CPU rank 0", "rows 0–160 · with prompt")
    assert (second["status"], second["wait"], second["sent"]) == ("step 2 / 9", "waiting 25 %", "1.2 MB/step")
    assert (first["memory"], first["buffers"], second["buffers"]) == ("419 MB", ", 3.1 MB buffers", "")
    assert (first["load"], second["load"]) == ("CPU 97 %", "GPU 88 %")
    assert lanes.live(dataclasses.replace(update, lanes=(_lane(0, None),)))["lanes"][0]["load"] == ""
    assert (unused["state"], unused["status"]) == ("rest", "sleeping")
    assert lanes.live(update)["foot"] == "Slowest device sets the pace: 40.0 ms a step"
    segments = stage.strip(update.lanes, request)
    assert [(each["start"], each["length"]) for each in segments] == [(0, 0.625), (0.625, 0.375)]
    columns = stage.strip((_lane(0, (0, 0, 128, 256)), _lane(1, (128, 0, 256, 256))), request)
    assert [(each["start"], each["columns"]) for each in columns] == [(0, True), (0.5, True)]


def test_stage_words() -> None:
    stopped = Update(id="1", state="cancelled", message="Stopped at step 13. Your prompt and seed are kept.")
    assert stage.ended(stopped)["title"] == "Stopped at step 13"
    assert stage.ended(stopped)["text"] == "Your prompt and seed are kept."
    left = stage.ended(Update(id="1", state="cancelled", message="You left the queue."))
    assert (left["title"], left["text"]) == ("You left the queue", "Your prompt and seed are kept.")
    lost = Update(id="1", state="lost", message="A device was lost: rank 2 stopped answering at step 6.")
    assert stage.ended(lost)["text"] == "Rank 2 stopped answering at step 6."


def test_stage_says_what_happens() -> None:
    waiting = Update(id="1", state="queued", message="", position=2, steps=30, config={"parallelism": "patch"})
    assert (stage.live(waiting)["title"], stage.live(waiting)["text"].split(". ")[0]) == (
        "In the queue",
        "You are number 2 in the line",
    )
    assert stage.live(dataclasses.replace(waiting, state="starting"))["title"] == "Waking the peers"
    running = dataclasses.replace(
        waiting, state="running", step=17, ms_per_step=36.4, seconds_left=0.57, phases="SSSSS" + 12 * "d"
    )
    assert stage.live(running)["progress"] == {
        "text": "Step 17 / 30",
        "detail": "36.4 ms/step · 0.6 s left",
        "share": 17 / 30,
        "warm": 5 / 30,
    }
    assert stage.live(dataclasses.replace(running, state="decoding"))["progress"]["text"] == "Decoding the picture"
    lost = dataclasses.replace(running, state="lost", message="A device was lost: rank 2 stopped. The workers restart.")
    assert (stage.live(lost)["title"], stage.live(lost)["text"]) == (
        "A device was lost",
        "Rank 2 stopped. The workers restart.",
    )


def test_take_knows_its_patches(tmp_path: Path) -> None:
    assert take(tmp_path, "patch", 1, 0).boxes() == ((0, 0, 64, 32), (0, 32, 64, 64))
    assert take(tmp_path, "naive_patch", 1, 0, split_scheme="col").boxes() == ((0, 0, 32, 64), (32, 0, 64, 64))
    assert take(tmp_path, "single", 1, 0).boxes() == ()


def test_gallery_groups_comparisons_and_leaves_out_lost_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(path)

    def record(id: str, method: str, comparison: str, picture: str | None, state: str = "done") -> Record:
        return Record(
            id=id,
            finished=0,
            state=state,
            request={"prompt": "p", "seed": 7},
            config={"parallelism": method},
            picture=picture,
            report={},
            comparison=comparison,
        )

    tiles = gallery.tiles(
        [
            record("4", "single", "", None, "cancelled"),
            record("3", "single", "c", str(path)),
            record("2", "patch", "c", str(path)),
            record("1", "patch", "", str(tmp_path / "gone.png")),
        ]
    )
    assert [(tile["id"], tile["methods"], tile["seed"]) for tile in tiles] == [("2", ["DistriFusion", "1 device"], "7")]


def test_plan() -> None:
    values = {**settings.DEFAULTS, "prompt": "x", "random_seed": False, "seed": 9}
    run = settings.plan(values, IDLE)
    assert run.request.seed == 9
    assert [config.parallelism for config in run.configs] == ["patch", "naive_patch", "single"]
    assert not any(config.split_batch for config in run.configs)
    assert settings.plan(values, dataclasses.replace(IDLE, ranks=4)).configs[0].split_batch
    alone = settings.plan(values, dataclasses.replace(IDLE, ranks=1))
    assert [config.parallelism for config in alone.configs] == ["single"]
    assert alone.plan is None
    first = settings.plan({**values, "parallelism": "single", "run": "+ Naive"}, IDLE)
    assert [config.parallelism for config in first.configs] == ["single", "naive_patch"]
    assert first.plan is None
    with pytest.raises(ValueError, match="3 ranks are asked for and 2 are there; give a number from 1 to 2"):
        settings.plan({**values, "ranks": "3"}, IDLE)
    with pytest.raises(ValueError, match="2 ranks cannot share 1 units of rows"):
        settings.plan({**values, "parallelism": "patch", "height": 32}, IDLE)


def test_auto_before_anything_is_known() -> None:
    values = {**settings.DEFAULTS, "prompt": "x", "run": "DistriFusion"}
    eight = dataclasses.replace(IDLE, ranks=8)
    for changes, words in (
        ({}, "patches and guidance split on 8 of 8 ranks"),
        ({"height": 96}, "patches and guidance split on 6 of 8 ranks"),  # 3 units of rows, 2 branches
        ({"height": 96, "split_batch": "off"}, "patches on 3 of 8 ranks"),
        ({"height": 32, "split_batch": "off"}, "1 of 8 ranks alone"),
        ({"ranks": "5"}, "patches on 5 of 8 ranks"),
        ({"ranks": "2"}, "patches on 2 of 8 ranks"),
        ({"ranks": "1"}, "1 of 8 ranks alone"),
    ):
        run = settings.plan({**values, **changes}, eight)
        asked = {"ranks": int(changes["ranks"])} if "ranks" in changes else {}
        asked |= {"split_batch": False} if "split_batch" in changes else {}
        assert run.plan == {
            "sentence": f"Auto: {words}, until it is known what this model costs here.",
            "candidates": [],
            **({"asked": asked} if asked else {}),
        }


def test_the_best_mode_and_a_warm_up_that_ends_by_itself() -> None:
    values = {**settings.DEFAULTS, "prompt": "x", "auto_warmup": True}
    for demo, best in ((True, "extrapolated"), (False, "corrected_async_gn")):
        status = dataclasses.replace(IDLE, model=dataclasses.replace(MODEL, demo=demo))
        first = settings.plan(values, status).configs[0]
        assert (first.mode, first.warmup_steps) == (best, "auto")
    assert settings.plan({**values, "mode": "no_sync"}, IDLE).configs[0].mode == "no_sync"


@pytest.mark.parametrize("side", ["height", "width"])
def test_size_of_zero_is_refused_not_replaced(side: str) -> None:
    with pytest.raises(ValueError, match=f"{side} 0 is not a positive multiple of 32; the smallest is 32"):
        settings.plan({**settings.DEFAULTS, "prompt": "x", side: 0}, IDLE)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("steps", "Steps is empty; 30 is usual"),
        ("guidance_scale", "Guidance is empty; 5 is usual"),
        ("warmup_steps", "Warm-up steps is empty; 4 is usual"),
    ],
)
def test_an_empty_field_is_called_by_its_label(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings.plan({**settings.DEFAULTS, "prompt": "x", name: None}, IDLE)


@pytest.mark.parametrize("auto_warmup", [False, True])
def test_settings_come_back(auto_warmup: bool) -> None:
    values = {**settings.DEFAULTS, "prompt": "x", "random_seed": False, "seed": 9, "steps": 7, "mode": "no_sync"}
    values |= {
        "auto_warmup": auto_warmup,
        "width": 256,
        "height": 192,
        "run": "+ Naive",
        "split_batch": "on",
        "scheduler": "euler",
        "parallelism": "patch",
        "ranks": "3",
    }
    run = settings.plan(values, dataclasses.replace(IDLE, ranks=4))
    parallelisms = [str(config.parallelism) for config in run.configs]
    config = {**dataclasses.asdict(run.configs[0]), "mode": str(run.configs[0].mode)}
    assert settings.of_picture(dataclasses.asdict(run.request), config, parallelisms) == values
    chosen = settings.plan({**values, "parallelism": "auto", "ranks": "auto"}, IDLE)  # comes back as what was used
    config = dataclasses.asdict(chosen.configs[0])
    back = settings.of_picture(dataclasses.asdict(chosen.request), config, parallelisms)
    assert (back["parallelism"], back["ranks"], back["split_batch"]) == ("patch", "auto", "on")


def test_link_round_trip_and_refusals() -> None:
    values = {
        "prompt": "a & b",
        "seed": 3,
        "random_seed": False,
        "steps": 30,
        "guidance_scale": 7.5,
        "auto_warmup": True,
    }
    query = settings.to_link(values)
    assert query == {"prompt": "a & b", "seed": "3", "guidance_scale": "7.5", "auto_warmup": "True"}
    assert settings.from_link(query)[0] == {name: value for name, value in values.items() if name != "steps"}
    link = {"seed": "x", "mode": "magic", "utm": "1", "random_seed": "no", "auto_warmup": "perhaps", "ranks": "3"}
    kept, complaints = settings.from_link(link, 2)
    assert kept == {}
    assert len(complaints) == 4
    assert settings.from_link({"ranks": "2", "parallelism": "auto"}, 2) == ({"ranks": "2", "parallelism": "auto"}, [])


@pytest.mark.parametrize("ratio", list(settings.RATIOS))
def test_sizes_fit_the_model(ratio: str) -> None:
    for model in (MODEL, dataclasses.replace(MODEL, default_size=1024)):
        width, height = settings.size_of(ratio, model)
        assert width % model.size_multiple == height % model.size_multiple == 0
        assert width / height == pytest.approx(settings.RATIOS[ratio], rel=0.08)
        assert width * height == pytest.approx(model.default_size**2, rel=0.22)
        assert settings.ratio_of(width, height, model) == ratio


def test_importing_the_page_is_light() -> None:
    check = "import sys, app; sys.exit(bool({'torch', 'gradio', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0
