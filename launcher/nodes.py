"""One group over several machines: which of them this is, where they meet, and the secret that they share. What travels
between them is tunnel.py's and gateway.py's business, that they all start and start again torchrun's.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "DISTRI_NODES"  # tells the agent and the ranks what `main` was told
BACKEND = "distri"  # the rendezvous that agent.py registers with torchrun
MAX_NODES = 64
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """This machine among `count`. Node 0 has rank 0, the page, the hub and the journal, and listens on `host`."""

    count: int
    rank: int
    host: str
    port: int
    token_file: str

    @classmethod
    def of(cls, count: int, rank: int | None, rdzv: str | None, token_file: str | None) -> Nodes | None:
        """What the options say; None for one machine. Raises ValueError if they make no sense together."""
        if not 1 <= count <= MAX_NODES:
            raise ValueError(f"{count} nodes are out of range; give --nnodes a number from 1 to {MAX_NODES}")
        others = {"--node-rank": rank, "--rdzv": rdzv, "--token-file": token_file}
        if count == 1:
            if given := [name for name, value in others.items() if value is not None]:
                raise ValueError(f"{given[0]} is for several nodes; give --nnodes, too, or leave it out")
            return None
        if rank is None or rdzv is None or token_file is None:
            missing = next(name for name, value in others.items() if value is None)
            raise ValueError(f"{count} nodes need {', '.join(others)}; {missing} is missing")
        if not 0 <= rank < count:
            raise ValueError(f"node rank {rank} is out of range; give a number from 0 to {count - 1}")
        host, port = _address(rdzv)
        return cls(count=count, rank=rank, host=host, port=port, token_file=str(Path(token_file).absolute()))

    @classmethod
    def here(cls) -> Nodes | None:
        """What `main` told this process; None on one machine."""
        text = os.environ.get(VARIABLE)
        return cls(**json.loads(text)) if text else None

    def variable(self) -> dict[str, str]:
        """The environment that tells processes what `here` returns. The token itself stays in its file."""
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def where(self) -> str:
        """The address where they meet, for people."""
        return f"{self.host}:{self.port}"


def _address(rdzv: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{rdzv}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or rdzv.endswith("/"):
        raise ValueError(f"--rdzv {rdzv!r:.80} is not HOST:PORT, an address of node 0 that the other nodes can reach")
    return host, port


def read_token(path: str | Path) -> bytes:
    """The secret in a file that only its user can read. Raises ValueError if it is none, or not kept as one."""
    make = f"make one with: (umask 077; head -c 32 /dev/urandom > {path})"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ValueError(f"token file {path} is not a file; {make}")
            if about.st_uid != os.getuid() or about.st_mode & 0o077:
                mode = f"{stat.S_IMODE(about.st_mode):04o}"
                raise ValueError(
                    f"token file {path} (user {about.st_uid}, mode {mode}) is not for this user alone; "
                    f"give it to user {os.getuid()} with mode 0600"
                )
            token = file.read(LONGEST_TOKEN + 1)
    except OSError as error:
        raise ValueError(f"token file {path} cannot be read ({error.strerror}); {make}") from None
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        size = f"{len(token)} bytes" if len(token) <= LONGEST_TOKEN else "larger"
        raise ValueError(
            f"token file {path} is {size}, and a token has {SHORTEST_TOKEN} to {LONGEST_TOKEN} bytes; {make}"
        )
    return token


def interface(nodes: Nodes) -> str:
    """The network interface over which this machine reaches node 0. Raises ValueError if there is none."""
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(nodes.host, nodes.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if nodes.rank == 0:
                probe.bind((address[0], 0))
            else:
                probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise ValueError(f"--rdzv {nodes.where} cannot be reached from here: {error.strerror or error}") from None
    if own.startswith("127."):
        return "lo"  # of which only 127.0.0.1 is listed
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == own for one in addresses):
            return name
    raise ValueError(f"--rdzv {nodes.where}: no network interface of this machine has the address {own}")
