"""Addresses by which the launchers of other machines reach this one, even if its host name does not resolve."""

import ipaddress
import socket
from contextlib import suppress

from partialfc.runtime import platform

_ELSEWHERE = "192.0.2.1"  # reserved for documentation: no machine has it


def is_this_machine(host: str) -> bool:
    """Return True if a name or address is of this machine, to whose addresses only it can bind a socket."""
    if host in ("localhost", socket.gethostname()):
        return True
    return any(_can_bind(family, address) for family, address in _resolve(host))


def host_name_is_local_only() -> bool:
    """Return True if the host name of this machine does not resolve, or only to a loopback address, even here."""
    found = _resolve(socket.gethostname())
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in found)


def address_for_others(host: str, port: int) -> str | None:
    """Return the address by which the other machines of a rendezvous at `host` reach this one.

    Returns:
        On the machine of the endpoint, `host`, since all machines use it. Elsewhere the address that packets to the
        endpoint come from; None if it is a loopback address, as for several launchers on one machine.
    """
    if host in ("localhost", socket.gethostname()):
        return host
    address = _source_address(host, port)
    if address is None or ipaddress.ip_address(address).is_loopback:
        return None
    return host if is_this_machine(host) else address


def interface_towards(host: str, port: int) -> str | None:
    """Return the network interface of this machine for connections to or from other machines, if it is known."""
    here = is_this_machine(host)
    address = next((it for _, it in _resolve(host)), None) if here else _source_address(host, port)
    if address is None or ipaddress.ip_address(address).is_loopback:
        address = _source_address(_ELSEWHERE, port)  # the default route
    return platform.network_interface(address)


def _resolve(host: str) -> list[tuple[int, str]]:
    """Return address families and addresses; none if the name does not resolve."""
    with suppress(OSError, UnicodeError):
        return [(it[0], str(it[4][0])) for it in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)]
    return []


def _can_bind(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _source_address(host: str, port: int) -> str | None:
    """Return the address of this machine on the route to another; sends nothing."""
    for family, address in _resolve(host):
        with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect((address, port or 9))
            found: str = probe.getsockname()[0]
            return found
    return None
