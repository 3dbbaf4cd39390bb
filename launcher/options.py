"""The options of the process: which ranks, which device, which model, which address. Read and checked before anything
is started; how a picture is made is decided request by request.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from distri_engine.config import Choice, TextEncoderOn, check_choice
from launcher.faults import planned
from launcher.model import choose_model
from launcher.nodes import Nodes

MAX_RANKS = 64
AUTH = "DISTRI_AUTH"
SWITCHES = {"on": True, "off": False}
CPU_RANKS = 2  # without GPUs: enough to show what patches do


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        refuse(message)


def number(word: str, kind: type[Any]) -> Any:
    """The number that `word` is, or the word itself, for somebody else to judge."""
    try:
        return kind(word)
    except ValueError:
        return word


def factors(text: str) -> Any:
    """One number, or a tuple of those between commas; what is none, somebody else judges."""
    numbers = tuple(number(word, float) for word in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def switches(name: str, text: str) -> list[bool]:
    """Which of on and off stand between commas in `text`, for the option `name`. Raises ValueError for another word."""
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in SWITCHES]:
        raise ValueError(f"unknown {name} {unknown[0]!r}; choose of: {', '.join(SWITCHES)}")
    return [SWITCHES[word] for word in dict.fromkeys(words)]


def named(text: str) -> Path:
    """The path that an option names; an empty one would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name is none; give one")
    return Path(text)


def given(words: argparse.Namespace, add_options: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """The names of a command's options that are not what they are by default."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return [name for name, value in vars(parser.parse_args([])).items() if getattr(words, name) != value]


def refuse_ignored(by: str, names: Sequence[str]) -> None:
    """Raise ValueError if there are `names` of options that have no effect with `by`."""
    if names:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{by} does not use {options}; leave that out")


def refuse(message: object) -> NoReturn:
    """End the program because of its arguments: one line on stderr, exit code 2."""
    print(" ".join(f"error: {message}".split()), file=sys.stderr)
    sys.exit(2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the group and its page are started. `resolve` turns what is open into numbers and names."""

    ranks: int | None = None  # processes; None: one for every GPU, or CPU_RANKS
    device: str = "auto"  # auto, cpu, cuda
    model: str | None = None  # folder or Hugging Face id; None: SDXL base on GPUs, else the embedded one
    text_encoder_on: str = "rank0"  # or "all": which ranks load the text encoders
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False  # also serve through a public Gradio link
    auth: tuple[str, str] | None = None  # user name and password that the page asks for
    mcp: bool = False  # also offer the API as tools of the Model Context Protocol
    nnodes: int = 1  # machines; `ranks` are those of each
    node_rank: int | None = None  # which of them this is; the page is on 0
    rdzv: str | None = None  # HOST:PORT of node 0, where they meet
    token_file: str | None = None  # what they know each other by

    def __post_init__(self) -> None:
        check_group(self.ranks, self.device)
        check_choice("text_encoder_on", self.text_encoder_on, TextEncoderOn)
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is out of range; give a number from 1 to 65535")
        if self.mcp and find_spec("mcp") is None:
            raise ValueError("--mcp needs the package mcp, which is not installed; pip install -r requirements-mcp.txt")
        if self.mcp and self.auth is not None:
            raise ValueError("--mcp and --auth do not go together, MCP clients cannot log in; leave one of them out")
        self.nodes()

    def nodes(self) -> Nodes | None:
        """The machines and which of them this is; None for one machine. Raises ValueError if that makes no sense."""
        return Nodes.of(self.nnodes, self.node_rank, self.rdzv, self.token_file)

    def arguments(self) -> list[str]:
        """The command line that parses to these options, but for `auth` and `nodes`, which travel in variables."""
        words = ["--device", self.device, "--host", self.host, "--port", str(self.port)]
        words += ["--ranks", str(self.ranks)] if self.ranks is not None else []
        words += ["--model", self.model] if self.model is not None else []
        words += ["--text-encoder-on", self.text_encoder_on]
        words += ["--mcp"] if self.mcp else []
        return words + (["--share"] if self.share else [])


def add_group_options(parser: argparse.ArgumentParser) -> None:
    """--ranks, and what every rank loads: the same for the page and for every command that makes pictures one way."""
    parser.add_argument("--ranks", type=int, help="processes that share a picture (default: one a GPU, else 2)")
    add_loading_options(parser)


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """--device, --model, --text-encoder-on."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--model", help="folder or Hugging Face id of an SDXL pipeline (CPU default: the embedded one)")
    parser.add_argument(
        "--text-encoder-on", default="rank0", help="rank0 (default) or all: who loads the text encoders"
    )


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """--nnodes, --node-rank, --rdzv, --token-file: one group over several machines."""
    parser.add_argument("--nnodes", type=int, default=1, help="machines that share a picture, --ranks on each")
    parser.add_argument("--node-rank", type=int, metavar="R", help="which of them this is; the page is on 0")
    parser.add_argument(
        "--rdzv", metavar="HOST:PORT", help="where they meet: an address of node 0, on a private network"
    )
    parser.add_argument("--token-file", metavar="FILE", help="the secret that they share, 16 bytes or more, mode 0600")


def parse(argv: Sequence[str]) -> Options:
    """The options of `python app.py`. Ends the program with exit code 2 if they make no sense."""
    parser = OneLineParser(prog="app.py", description="One SDXL picture on all your devices.")
    add_group_options(parser)
    space = bool(os.environ.get("SPACE_ID"))
    parser.add_argument("--host", default="0.0.0.0" if space else "127.0.0.1", help="address to serve the page on")
    parser.add_argument("--port", type=int, default=7860, help="port to serve the page on")
    parser.add_argument("--share", action="store_true", help="also serve through a public Gradio link")
    mcp = os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"  # Gradio's own name, where nobody types options
    parser.add_argument("--mcp", action="store_true", default=mcp, help="also offer the API as MCP tools")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        default=os.environ.get(AUTH),
        help=f"ask visitors for this name and password (or set {AUTH}, which other users of the machine cannot read)",
    )
    add_node_options(parser)
    words = parser.parse_args(argv)
    try:
        planned()
        return Options(**{**vars(words), "auth": _pair(words.auth)})
    except ValueError as error:
        refuse(error)


def _pair(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise ValueError("--auth takes USER:PASSWORD, both not empty")
    return user, password


def check_group(ranks: int | None, device: str) -> None:
    """Raise ValueError if no machine could start this."""
    if ranks is not None and not 1 <= ranks <= MAX_RANKS:
        raise ValueError(f"{ranks} ranks are out of range; give a number from 1 to {MAX_RANKS}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose one of: auto, cpu, cuda")


def rank_counts(text: str) -> list[int]:
    """The numbers of a list such as 1,2,4, each once. Raises ValueError for anything else."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"ranks {text!r} is not a list of numbers; write 1,2,4,8") from None
    for count in counts:
        if not 1 <= count <= MAX_RANKS:
            raise ValueError(f"{count} ranks are out of range; give numbers from 1 to {MAX_RANKS}")
    return list(dict.fromkeys(counts))


def choices(name: str, text: str, kind: type[Choice]) -> list[Choice]:
    """The members of `kind` in a list such as patch,single, each once. Raises ValueError that lists what there is."""
    return list(dict.fromkeys(check_choice(name, word.strip(), kind) for word in text.split(",")))


def resolve(ranks: int | None, device: str, model: str | None) -> tuple[int, str, str]:
    """Numbers and names for what was left open. Raises ValueError if this machine cannot do it."""
    check_group(ranks, device)
    gpus = count_gpus() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise ValueError("no CUDA device is visible to this process; use --device cpu")
    device = "cuda" if gpus else "cpu"
    return ranks or gpus or CPU_RANKS, device, choose_model(model, device)


def count_gpus() -> int:
    """GPUs that torch would use. Torch takes seconds to import and is not asked on machines without a driver."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def usable_cores() -> int:
    """CPU cores that this process may use: the scheduler's mask, and a container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
