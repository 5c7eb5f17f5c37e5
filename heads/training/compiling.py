"""A model whose forward pass is compiled, and an error that says what to do if torch.compile fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.data.inputs import Inputs
from heads.errors import HeadsError
from heads.model.model import Model


class Compiled(nn.Module):
    """The model's own parameters and modes, with a forward pass compiled at the first call, which may take minutes.

    Raises HeadsError if torch.compile fails, for example because no C++ compiler is installed.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self._call = torch.compile(model.forward)

    def forward(self, inputs: Inputs | Tensor) -> dict[str, Tensor]:
        try:
            return self._call(inputs)
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().splitlines()[0]
                raise HeadsError(
                    f"torch.compile failed ({reason}); train with compile: false, or install a C++ compiler"
                ) from error
            raise
