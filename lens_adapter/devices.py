"""From the CPU to an accelerator without a stop."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor.to(device)`; a CUDA device is not waited for.

    `.to` alone lets the CPU wait until all that the device was told before is done, for a handful of numbers too. It
    need not: memory that is not pinned has been read when the call returns. Pinned memory is read later, when its owner
    may have written to it: there it waits.
    """
    ahead = torch.device(device).type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned()
    return tensor.to(device, non_blocking=ahead)
