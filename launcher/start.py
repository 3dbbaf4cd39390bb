"""Builds the loopback-only torchrun command and execs it. What the started processes do is rank.py's business; which
options there are is that of options.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import stat
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from launcher.journal import Busy, Journal, data_folder
from launcher.nodes import BACKEND, Nodes, interface, read_token
from launcher.options import AUTH, Options, parse, refuse, resolve, usable_cores

__all__ = ["Options", "Place", "in_group", "main", "parse", "rank_environment", "torchrun_command"]

RUN_DIR = "DISTRI_RUN_DIR"
SERVES = "DISTRI_SERVES"  # tells agent.py that the run directory is its own to tidy, and on node 0 the journal
_PREFIX = "distrifusion"
_AGENT = Path(__file__).with_name("agent.py")


def in_group() -> bool:
    """Whether torchrun started this process as a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where torchrun put this process."""

    rank: int
    world_size: int
    restarts: int  # how often the group was started again
    run_dir: Path  # 0700, shared by all ranks of this run and nobody else
    guarded: bool  # whether the group was started by `main`, on loopback only

    @classmethod
    def here(cls) -> Place:
        """This process's place. Plain torchrun gives no run directory: its ranks derive one from their agent."""
        env = os.environ
        guarded = RUN_DIR in env
        if guarded:
            run_dir = Path(env[RUN_DIR])
        else:
            run_dir = temporary_folder() / f"{_PREFIX}-{os.getppid()}-{os.getuid()}"
            with contextlib.suppress(FileExistsError):
                run_dir.mkdir(mode=0o700)
        about = run_dir.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise PermissionError(f"{run_dir} is not a directory of this user alone; remove it")
        return cls(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            restarts=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
            run_dir=run_dir,
            guarded=guarded,
        )


def temporary_folder() -> Path:
    """Where run directories are made: the system's choice, unless a socket's address in it, or in a folder of a rank's
    own in there, would exceed 107 bytes.
    """
    folder = tempfile.gettempdir()
    return Path(folder if len(folder.encode()) <= 58 else "/tmp")


def make_run_dir() -> Path:
    """A fresh 0700 directory for sockets and stores. Those that dead runs left behind are removed."""
    for old in temporary_folder().glob(f"{_PREFIX}-*-*"):
        pid = old.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError):  # another run that begins now sweeps, too
            if pid.isdigit() and not Path("/proc", pid).exists() and old.lstat().st_uid == os.getuid():
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{os.getpid()}-", dir=temporary_folder()))


def remove_run_dir(run_dir: Path) -> None:
    """The run is over."""
    shutil.rmtree(run_dir, ignore_errors=True)


def torchrun_command(
    run_dir: Path, ranks: int, script: Sequence[str], *, restarts: int, nodes: Nodes | None = None
) -> list[str]:
    """The command that starts `ranks` processes of `script` (a file or -m module, and its arguments).

    The rendezvous is a file: `--standalone` would open two unauthenticated stores on all interfaces. With `nodes` it is
    the one that agent.py brings along.
    """
    options = {
        "nnodes": 1,
        "nproc-per-node": ranks,
        "rdzv-backend": "c10d",
        # Every sign of life would make the file longer, 10 MB a day; with one agent there is nobody to read them.
        "rdzv-conf": "store_type=file,keep_alive_interval=31536000",
        "rdzv-endpoint": run_dir / "rdzv",
        "rdzv-id": uuid.uuid4(),
        "local-addr": "127.0.0.1",
        "max-restarts": restarts,
        "shutdown-timeout": 3,
    }
    if nodes is not None:
        options |= across(nodes)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-P", str(_AGENT), *words, *script]  # -P: what lies beside agent.py shadows nothing


def across(nodes: Nodes) -> dict[str, object]:
    """What torchrun is told differently when there are several machines."""
    return {
        "nnodes": nodes.count,
        "rdzv-backend": BACKEND,
        "rdzv-conf": "join_timeout=31536000,keep_alive_interval=2,keep_alive_max_attempt=3",  # a node may be away long
        "rdzv-endpoint": nodes.where,
        "rdzv-id": "distri",
        "local-addr": f"node-{nodes.rank:04}",  # torchrun numbers nodes in the order of these names
    }


def rank_environment(run_dir: Path, ranks: int, device: str) -> dict[str, str]:
    """The environment of torchrun and its ranks: loopback, cores divided, no chatter of libraries."""
    env = {
        RUN_DIR: str(run_dir),
        "TMPDIR": str(run_dir),  # what torchrun, Gradio and the ranks leave there goes with it
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(max(1, usable_cores() // ranks)),
        **quiet_environment(os.environ),
    }
    if device == "cpu":
        # Threads that spin while their rank waits take the cores that the other ranks compute on.
        env |= {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **env}


def quiet_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Settings that keep libraries from writing to the terminal, unless the user chose otherwise."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {name: env.get(name, value) for name, value in quiet.items()}


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Raise ValueError if nobody could listen there. `option` is where another port is chosen."""
    where = f"port {port} on {host}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # A predecessor's closed connections do not count; a listener does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        raise ValueError(f"host {host} is no address of this machine: {error.strerror}; use 127.0.0.1") from None
    except OSError as error:
        raise ValueError(f"{where} cannot be opened ({error.strerror}); choose another with {option}") from None


def check_data_folder() -> None:
    """Raise ValueError if another program keeps its journal where ours would be."""
    journal = Journal(data_folder())
    journal.close()
    if isinstance(journal.fault, Busy):
        raise ValueError(str(journal.fault))


def check_node(nodes: Nodes) -> dict[str, str]:
    """What the processes of this node are told. Raises ValueError if it could not meet the others."""
    read_token(nodes.token_file)
    if nodes.rank == 0:
        check_port(nodes.host, nodes.port, "--rdzv")
    name = interface(nodes)
    return {**nodes.variable(), "GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def main(options: Options, script: str) -> NoReturn:
    """Start the group and its page; this process becomes the torchrun agent. Exit code 2 if that cannot work."""
    nodes = options.nodes()
    with_page = nodes is None or nodes.rank == 0
    try:
        if with_page:
            check_port(options.host, options.port)
        ranks, device, model = resolve(options.ranks, options.device, options.model)
        node_env = {} if nodes is None else check_node(nodes)
        if with_page:
            check_data_folder()  # last: it may make the folder
    except ValueError as error:
        refuse(error)
    resolved = dataclasses.replace(options, ranks=ranks, device=device, model=model)
    run_dir = make_run_dir()
    command = torchrun_command(run_dir, ranks, [script, *resolved.arguments()], restarts=1_000_000, nodes=nodes)
    env = rank_environment(run_dir, ranks, device) | node_env | {SERVES: "1"}
    if options.auth is not None:
        env[AUTH] = ":".join(options.auth)  # a command line can be read by every user of the machine
    os.execve(command[0], command, env)
