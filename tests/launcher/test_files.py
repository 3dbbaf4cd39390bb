"""Files of the commands: whole or not at all, never another one's, and into whatever somebody names as a target."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

import pytest

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import picture_folder as pictures
from launcher.__main__ import main
from launcher.files import check_apart, check_target, sweep, whole_file, write_json
from launcher.generate import make_picture
from launcher.picture_folder import CAPTIONS, RUN


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    check_target(pipe, "x.json")
    write_json({"a": 1}, pipe)
    reader.join(20)
    assert json.loads(got[0]) == {"a": 1}
    assert pipe.is_fifo()
    write_json({}, Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    read, write = os.pipe()
    write_json({"b": 2}, Path(f"/dev/fd/{write}"))
    os.close(write)
    with os.fdopen(read) as stream:
        assert json.load(stream) == {"b": 2}


def test_a_link_is_followed_and_long_names_fit(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "far" / "target.json")
    write_json({"a": 1}, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "far" / "target.json").read_text()) == {"a": 1}
    long = tmp_path / ("ä" * 124 + ".json")  # 253 bytes
    check_target(long, "x.json")
    write_json({}, long)
    with whole_file(long) as file:
        left = Path(file.name)  # as one who is killed leaves it
    other = left.with_name(left.name.replace(left.name[:60], left.name[:50] + "another..."))
    for part in (left, other):
        part.write_text("x")
    sweep(tmp_path, long.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["far", "link.json", long.name, other.name])


def test_files_in_shared_memory_are_files() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "a.json")
        write_json({"a": 1}, file)
        with pytest.raises(RuntimeError), whole_file(file):
            raise RuntimeError
        assert json.loads(file.read_text()) == {"a": 1}  # not cut off
        with pytest.raises(ValueError, match="both name"):
            check_apart(output=file, json=file)


def test_what_cannot_be_a_target(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ValueError, match="is a link to itself; choose another name"):
        check_target(loop, "x.json")
    with pytest.raises(ValueError, match="is no file, and a picture becomes one"):
        make_picture(GenerationRequest(prompt="x"), DistriConfig(), Path("/dev/null"))


def test_two_results_need_two_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "again.png").symlink_to("a.png")
    with pytest.raises(ValueError, match="--output and --report both name"):
        check_apart(output=tmp_path / "a.png", report=tmp_path / "again.png")
    check_apart(output=Path("/dev/null"), report=Path("/dev/null"))
    for words in (
        ["generate", "--prompt", "x", "--output", f"{tmp_path}/a.png", "--report", f"{tmp_path}/a.png"],
        ["export-html", str(tmp_path), "--output", f"{tmp_path}/p.html", "--json", f"{tmp_path}/p.html"],
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert "both name" in capsys.readouterr().err


def test_captions_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / CAPTIONS
    own.write_text("a red house\na blue house\na green house\n")
    with pytest.raises(ValueError, match="is not of a run of this command, which would replace it"):
        pictures.check_texts(tmp_path, ["a red house"], RUN)
    (tmp_path / RUN).write_text("{}")
    pictures.check_texts(tmp_path, ["a red house"], RUN)
    pictures.write_texts(tmp_path, ["a red house"], tmp_path)
    assert own.read_text().count("\n") == 3  # a smaller --count forgets none
    pictures.write_texts(tmp_path, ["another"], tmp_path)
    assert own.read_text() == "another\n"
    (tmp_path / RUN).unlink()
    with pytest.raises(ValueError, match="is not of a run of this command"):
        pictures.check_texts(tmp_path, ["a third"], CAPTIONS)
    pictures.check_texts(tmp_path, ["another", "a third"], CAPTIONS)  # a dump that had not begun
