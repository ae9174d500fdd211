"""ONNX models with the interface of our networks."""

from pathlib import Path

import torch
from torch import Tensor, nn

from partialfc.errors import InputError
from partialfc.input_files import require_file


class OnnxNetwork(nn.Module):
    """ONNX model: float images `[b, 3, H, W]` in [-1, 1] -> float32 embeddings `[b, D]`, by onnxruntime on the CPU.

    Raises:
        InputError: If the model has other inputs or outputs.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime  # imported late: training ranks do not need it

        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; expected an .onnx file")
        require_file(path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime does not document its exceptions
            raise InputError(f"{path}: expected ONNX: {' '.join(str(error).split())[:100]}") from None
        (taken, *others) = self._session.get_inputs()
        if others or len(taken.shape) != 4 or not isinstance(taken.shape[2], int):
            raise InputError(
                f"{path}: takes {[it.shape for it in (taken, *others)]}, expected images [b, 3, H, H]"
            )
        self._input, self.input_size = taken.name, taken.shape[2]

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings `[b, D]` of images `[b, 3, H, W]`."""
        outputs = self._session.run(None, {self._input: images.contiguous().numpy()})
        return torch.from_numpy(outputs[0])
