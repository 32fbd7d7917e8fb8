"""TCP ports on this machine."""

import errno
import random
import socket

from tinsmith_local.errors import StackError

# Below the kernel's ephemeral range: a port there could be lent to an outgoing connection before the part that it was
# chosen for has bound it.
_FIRST, _LAST = 20000, 32000


def check_port(host: str, port: int) -> None:
    """Raise StackError, in one sentence, unless `port` can be listened on at `host`."""
    error = _listen_error(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise StackError(f"Port {port} is already in use: stop that program or choose another with PORT=…")
    raise StackError(f"Cannot listen on {host}:{port} ({error.strerror}): choose another port with PORT=…")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports on which nothing listens now."""
    ports: list[int] = []
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        if len(ports) == count:
            return ports
        if _listen_error(host, port) is None:
            ports.append(port)
    raise StackError(f"There are no {count} free ports between {_FIRST} and {_LAST}: stop some programs.")


def _listen_error(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None
