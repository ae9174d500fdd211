"""An exported network as if it were one of ours."""

from pathlib import Path

import torch
from torch import Tensor, nn

from partialfc.errors import InputError


class OnnxNetwork(nn.Module):
    """float images [b, 3, H, W] in [-1, 1] -> float32 embeddings [b, D], by onnxruntime, on the CPU. InputError where the
    file is none that takes such images.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime  # here, as a rank that trains has no use for it

        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; wanted an .onnx file")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds, which it does not document
            raise InputError(f"{path}: not ONNX: {' '.join(str(error).split())[:100]}") from None
        (taken, *others) = self._session.get_inputs()
        if others or len(taken.shape) != 4 or not isinstance(taken.shape[2], int):
            raise InputError(
                f"{path}: takes {[it.shape for it in (taken, *others)]}, wanted images [b, 3, H, H]"
            )
        self._input, self.input_size = taken.name, taken.shape[2]

    def forward(self, images: Tensor) -> Tensor:
        outputs = self._session.run(None, {self._input: images.contiguous().numpy()})
        return torch.from_numpy(outputs[0])
