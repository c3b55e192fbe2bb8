"""PyTorch's process group of Ray Train, over the interface by which Ray's nodes reach each other."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

from ctxrec.core.ray_private import torch_backend

_INTERFACE = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """The network interface that holds an IP address; none for a loopback or an address of another machine.

    >>> interface_of("127.0.0.1") is None
    True
    """
    if ipaddress.ip_address(address).is_loopback:
        return None
    found = psutil.net_if_addrs()
    return next((name for name, held in found.items() if any(h.address == address for h in held)), None)


def choose_interface() -> None:
    """Let gloo take the interface of this node's address in Ray, unless one is named already.

    By itself gloo takes the address that the machine's name leads to, which is often a loopback (Debian and Ubuntu
    write 127.0.1.1 into /etc/hosts): other machines would wait in vain.
    """
    name = None if _INTERFACE in os.environ else interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ[_INTERFACE] = name


class ProcessGroupConfig(TorchConfig):
    """`TorchConfig` whose workers find each other between machines."""

    @property
    def backend_cls(self) -> type[Any]:
        return torch_backend(choose_interface)
