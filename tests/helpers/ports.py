"""Ports for servers of tests."""

import os
import socket


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free on loopback."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, 7):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for place, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + place))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise OSError("no free ports")
