"""Settings out of dropped pictures: those of ours come back whole, those of others as far as they are understood, and
nothing that a file says is believed.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from launcher import png
from launcher.web import recover, settings
from tests.page.test_panels import IDLE

FOREIGN = """a castle, (detailed:1.2)
on a hill
Negative prompt: rain,
fog
Steps: 25, Sampler: Euler, CFG scale: 6.5, Seed: 77, Size: 512x768, Model: "a, b: c", Mode: 3, Version: v1.9"""


def picture(**chunks: str) -> bytes:
    """A PNG with these text chunks."""
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in chunks.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def ours(**changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of the controls, and the chunks of the picture that they make."""
    values = {**settings.DEFAULTS, "prompt": "a {{red}} <b>house</b>", "width": 96, "height": 64, **changes}
    asked = settings.plan(values, IDLE)
    request, configs = asked.request, asked.configs
    return values, png.chunks(request, configs[0], model=str(IDLE.model and IDLE.model.name), device="CPU", ranks=2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompt": "rain", "steps": 7, "guidance_scale": 1.5, "scheduler": "euler", "seed": 5},
        {"mode": "no_sync", "warmup_steps": 2, "split_batch": "on", "random_seed": False, "seed": 0},
        {"parallelism": "naive_patch", "split_scheme": "alternate", "auto_warmup": True},
        {"parallelism": "paradigms", "style": "Watercolour"},
    ],
)
def test_a_picture_of_ours_makes_the_same_again(changes: dict[str, Any]) -> None:
    values, chunks = ours(**changes)
    back, notes = recover.controls(picture(**chunks), IDLE)
    assert notes == []
    again = settings.plan({**settings.DEFAULTS, **back}, IDLE)
    remade = png.chunks(again.request, again.configs[0], model="embedded demo model", device="CPU", ranks=2)
    assert remade == chunks
    assert "run" not in back
    seed = chunks["parameters"].split("Seed: ")[1].split(",")[0]
    assert (back["prompt"], str(back["seed"])) == (values["prompt"], seed)


def test_the_common_text_alone_makes_it_again_too() -> None:
    _, chunks = ours(mode="no_sync", warmup_steps=3, scheduler="dpm-solver", negative_prompt="rain")
    whole, _ = recover.controls(picture(**chunks), IDLE)
    text, notes = recover.controls(picture(parameters=chunks["parameters"]), IDLE)
    assert notes == []
    assert text == {name: value for name, value in whole.items() if name not in ("metadata", "ranks")}


def test_a_picture_of_another_program() -> None:
    back, notes = recover.controls(picture(parameters=FOREIGN), IDLE)
    assert back == {
        "prompt": "a castle, (detailed:1.2)\non a hill",
        "style": "None",
        "negative_prompt": "rain,\nfog",
        "steps": 25,
        "scheduler": "euler",
        "guidance_scale": 6.5,
        "seed": 77,
        "random_seed": False,
        "width": 512,
        "height": 768,
    }
    assert notes == []
    text = FOREIGN.replace("Euler", "Heun").replace("768", "500").replace("25", "2500")
    back, notes = recover.controls(picture(parameters=text), IDLE)
    assert not {"scheduler", "width", "height", "steps"} & set(back)
    assert notes == [
        "Steps 2500 is out of range; give a number from 1 to 1000.",
        "Sampler 'Heun' is not known here.",
        "Height 500 is not a multiple of 32; nearest: 480 or 512.",
    ]


def test_what_will_be_different_is_said() -> None:
    _, chunks = ours()
    said = json.loads(chunks["distrifusion"])
    said["config"] |= {"extrapolation": [0.4, 0.4, 0.4]}
    said["topology"] |= {"model": "another/model", "used": 4}
    _, notes = recover.controls(picture(distrifusion=json.dumps(said)), IDLE)
    assert notes == [
        "It was made by another model, another/model.",
        "It was made on 4 devices, here are 2.",
        "Extrapolation was [0.4, 0.4, 0.4], here it is [0.5, 0.5, 0.0].",
    ]
    _, notes = recover.controls(picture(**chunks), dataclasses.replace(IDLE, ranks=1))
    assert "Parallelism was patch, here it is single." in notes


def hostile() -> dict[str, tuple[bytes, str]]:
    """Files by what is wrong with them, and the sentence that they get."""
    said = json.loads(ours()[1]["distrifusion"])

    def wrong(part: str, **changes: Any) -> bytes:
        return picture(distrifusion=json.dumps({**said, part: {**said[part], **changes}}))

    bomb = PngInfo()
    bomb.add_itxt("distrifusion", "x" * 10**8, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=bomb)
    no_png, nothing, useless = "this is not a PNG picture", recover.NONE, "this picture's settings cannot be used: "
    foreign = "this picture's settings are not understood: "
    return {
        "empty": (b"", no_png),
        "another format": (b"GIF89a" + bytes(100), no_png),
        "cut off": (picture()[:20], no_png),
        "plain": (picture(), nothing),
        "a long text": (picture(distrifusion="x" * 2**17), nothing),
        "a bomb": (buffer.getvalue(), no_png),
        "no JSON": (picture(distrifusion="{"), useless + "they are no JSON"),
        "deep JSON": (picture(distrifusion="[" * 60_000), useless + "they are no JSON"),
        "a list": (picture(distrifusion="[]"), useless + "another version"),
        "another format number": (picture(distrifusion='{"format": 2}'), useless + "another version"),
        "nothing in it": (picture(distrifusion='{"format": 1, "request": []}'), useless + "the request is incomplete"),
        "a number for a prompt": (wrong("request", prompt=7), useless + "prompt 7 is not text"),
        "a long prompt": (wrong("request", prompt="x" * 2001), useless + "prompt has 2001 characters"),
        "half a character": (wrong("request", prompt="\ud800"), useless + "prompt holds half a character"),
        "a list for a mode": (wrong("config", mode=[]), useless + "unknown mode []"),
        "an unknown option": (wrong("config", __class__="x"), useless + "unknown config option"),
        "no number": (wrong("config", warmup_threshold=float("nan")), useless + "warmup_threshold nan"),
        "no settings line": (
            picture(parameters="a red house"),
            foreign + "it has no line of settings",
        ),
        "no prompt": (
            picture(parameters="Steps: 5"),
            foreign + "the prompt is empty",
        ),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_one_sentence(name: str) -> None:
    data, sentence = HOSTILE[name]
    with pytest.raises(ValueError) as refusal:
        recover.controls(data, IDLE)
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


def test_only_the_beginning_of_a_file_is_taken() -> None:
    def uri(data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    whole = picture(parameters=FOREIGN) + bytes(recover.MAX_BYTES)
    assert recover.controls(recover.decode(uri(whole[: recover.MAX_BYTES])), IDLE)[0]["seed"] == 77
    with pytest.raises(ValueError, match="more than the first 1 MiB"):
        recover.decode(uri(whole))
    for bad in ("", "data:,x", "data:image/png;base64,###"):
        with pytest.raises(ValueError, match=r"did not arrive whole|not a PNG"):
            recover.controls(recover.decode(bad), IDLE)
