"""Heat as a dense prompt: where a mask may be, told to the mask decoder cell by cell (an option of LENS)."""

from __future__ import annotations

from torch import Tensor, nn


class DensePrompt(nn.Module):
    """Heat over the mask decoder's grid -> what is added to its "no mask". It starts as nothing, and learns.

    Args:
        width: C, of the mask decoder.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(1, width, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, heat: Tensor) -> Tensor:
        """(N, 1, g, g) -> (N, C, g, g)"""
        prompt: Tensor = self.conv(heat.to(self.conv.weight.dtype))
        return prompt
