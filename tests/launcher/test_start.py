"""Starting: options, the torchrun command, and everything that must be refused before a process is started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher import model, options, start, wire
from launcher.journal import Journal
from launcher.options import Options, parse
from tests.support.processes import TOY_APP, free_port, toy_model


def test_options_come_back_from_their_own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv(options.AUTH, raising=False)
    monkeypatch.delenv("GRADIO_MCP_SERVER", raising=False)
    full = Options(
        ranks=3, device="cpu", model="/m", text_encoder_on="all", host="127.0.0.2", port=81, share=True,
        auth=("me", "pass:word"),
    )  # fmt: skip
    for one in (Options(), Options(mcp=True)):
        assert parse(one.arguments()) == one
    assert not any("pass" in word for word in full.arguments())
    monkeypatch.setenv(options.AUTH, "me:pass:word")
    assert parse(full.arguments()) == full
    assert parse(["--auth", "you:other"]).auth == ("you", "other")


def test_a_space_serves_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert (parse([]).host, parse([]).port) == ("0.0.0.0", 7860)
    assert parse(["--host", "127.0.0.1"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--ranks", "0"], "0 ranks are out of range"),
        (["--ranks", "two"], "invalid int value"),
        (["--port", "99999"], "port 99999 is out of range"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--text-encoder-on", "rank1"], "unknown text_encoder_on 'rank1'; choose one of: rank0, all"),
        (["--auth", "me"], "USER:PASSWORD"),
        (["--mcp", "--auth", "me:secret"], "--mcp and --auth do not go together"),
        (["--wat"], "unrecognized arguments: --wat"),
        (["--nnodes", "0"], "0 nodes are out of range"),
        (["--node-rank", "1"], "--node-rank is for several nodes"),
        (["--nnodes", "2", "--node-rank", "0", "--rdzv", "h:1"], "--token-file is missing"),
        (["--nnodes", "2", "--node-rank", "2", "--rdzv", "h:1", "--token-file", "t"], "node rank 2 is out of range"),
        (["--nnodes", "2", "--node-rank", "0", "--rdzv", "h", "--token-file", "t"], "'h' is not HOST:PORT"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(argv)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert sentence in lines[0]


def test_tools_need_their_package_and_can_be_asked_for_by_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    assert parse([]).mcp
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        parse([])
    assert "needs the package mcp" in capsys.readouterr().err


@pytest.fixture
def no_exec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTRI_DATA", str(tmp_path / "data"))

    def refuse(*_: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(os, "execve", refuse)


def ended(capsys: pytest.CaptureFixture[str], one: Options) -> str:
    with pytest.raises(SystemExit) as end:
        start.main(one, "app.py")
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.usefixtures("no_exec")
def test_a_used_port_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = ended(capsys, Options(port=port, device="cpu", model=str(toy_model(tmp_path))))
    assert line.startswith(f"error: port {port} on 127.0.0.1 cannot be opened")
    assert "--port" in line


@pytest.mark.usefixtures("no_exec")
def test_a_data_folder_in_use_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRI_DATA", str(tmp_path / "data"))
    other = Journal(tmp_path / "data")
    line = ended(capsys, Options(port=free_port(), device="cpu", model=str(toy_model(tmp_path))))
    assert line == f"error: another program works in {tmp_path}/data; set DISTRI_DATA to another folder"
    other.close()
    start.check_data_folder()


@pytest.mark.usefixtures("no_exec")
def test_a_host_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "host not.a.host" in ended(capsys, Options(host="not.a.host.invalid", port=free_port()))


@pytest.mark.usefixtures("no_exec")
def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "count_gpus", lambda: 0)
    assert "use --device cpu" in ended(capsys, Options(device="cuda", port=free_port()))


def damage(folder: Path, how: str) -> Path:
    made = toy_model(folder)
    match how:
        case "no index":
            (made / "model_index.json").unlink()
        case "torn index":
            (made / "model_index.json").write_text("{")
        case "other index":
            (made / "model_index.json").write_text(json.dumps({"bert": 1}))
        case "no part":
            shutil.rmtree(made / "vae")
        case "torn settings":
            (made / "unet" / "config.json").write_text("{")
        case "long name":
            return Path("a" * 5000)
        case "only bin":
            (made / "unet" / "model.safetensors").rename(made / "unet" / "model.bin")
        case "cut short":
            (made / "unet" / "model.safetensors").write_bytes((200).to_bytes(8, "little") + b'{"x": 1')
        case "git-lfs pointer":
            (made / "unet" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        case "missing":
            return folder / "no/such/folder"
        case "file":
            return made / "model_index.json"
    return made


@pytest.mark.usefixtures("no_exec")
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no index", "has no model_index.json"),
        ("torn index", "cannot be read"),
        ("other index", "names no unet and vae"),
        ("no part", "is missing although model_index.json names it"),
        ("torn settings", "config.json cannot be read"),
        ("long name", "cannot be read: File name too long"),
        ("only bin", "has no .safetensors weights"),
        ("cut short", "is damaged or incomplete"),
        ("git-lfs pointer", "is damaged or incomplete"),
        ("missing", "neither a folder nor a Hugging Face id"),
        ("file", "neither a folder nor a Hugging Face id"),
    ],
)
def test_an_unreadable_model_folder_is_refused(
    how: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Options(model=str(damage(tmp_path, how)), device="cpu", port=free_port())
    assert sentence in ended(capsys, one)
    assert not (tmp_path / "data").exists()


def test_an_id_that_cannot_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "why_not_fetchable", lambda _: "it cannot be fetched")
    with pytest.raises(ValueError, match=r"no-such/model is not a folder here.*cannot be fetched"):
        model.choose_model("no-such/model", "cpu")


def test_which_model_runs_without_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "why_not_fetchable", lambda _: "")
    assert model.choose_model(None, "cuda") == model.SDXL
    assert model.choose_model(None, "cpu") == str(model.DEMO_MODEL)
    monkeypatch.setattr(model, "why_not_fetchable", lambda _: "no network")
    assert model.choose_model(None, "cuda") == str(model.DEMO_MODEL)


def test_sizes_of_the_embedded_model() -> None:
    assert model.sizes(str(model.DEMO_MODEL)) == (256, 32)
    assert model.sizes("some/id") == (None, 32)


def test_the_command_rendezvous_in_a_file_and_never_standalone(tmp_path: Path) -> None:
    command = start.torchrun_command(tmp_path, 3, ["app.py", "--port", "1"], restarts=5)
    assert "--standalone" not in command
    pairs = dict(zip(command[3:-3:2], command[4:-3:2], strict=True))
    assert pairs["--rdzv-conf"].split(",")[0] == "store_type=file"
    assert pairs["--rdzv-endpoint"] == str(tmp_path / "rdzv")
    assert pairs["--local-addr"] == "127.0.0.1"
    assert (pairs["--nproc-per-node"], pairs["--max-restarts"]) == ("3", "5")
    env = start.rank_environment(tmp_path, 64, "cpu")
    assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")
    assert (env["OMP_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")


def test_run_directories_are_private_and_those_of_the_dead_are_swept(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (short_tmp / f"distrifusion-{gone.pid}-x").mkdir()
    alive, foreign = short_tmp / f"distrifusion-{os.getpid()}-y", short_tmp / "distrifusion-notes-z"
    alive.mkdir()
    foreign.mkdir()
    made = start.make_run_dir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert set(short_tmp.iterdir()) == {made, alive, foreign}


def test_runs_that_begin_together_sweep_together(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for number in range(500):
        (short_tmp / f"distrifusion-{gone.pid}-{number}").mkdir()
    with ThreadPoolExecutor(8) as runs:
        made = {run.result() for run in [runs.submit(start.make_run_dir) for _ in range(8)]}
    assert set(short_tmp.iterdir()) == made
    assert len(made) == 8


def test_a_socket_fits_into_a_run_directory_wherever_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * 200)
    made = start.make_run_dir()
    wire.listen(made / "hub").close()
    start.remove_run_dir(made)


def test_a_run_directory_of_somebody_else_is_not_used(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.delenv(start.RUN_DIR, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start.Place.here().run_dir.stat().st_mode & 0o777 == 0o700
    start.Place.here().run_dir.chmod(0o755)
    with pytest.raises(PermissionError, match="not a directory of this user alone"):
        start.Place.here()


def test_a_used_port_ends_the_program_with_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["--port", str(taken.getsockname()[1]), "--device", "cpu", "--model", str(toy_model(tmp_path))]
        run = subprocess.run([sys.executable, str(TOY_APP), *words], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert run.stdout == ""
