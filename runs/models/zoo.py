"""One loaded model and the copies of it that methods need, sharing weights wherever layout and dtype agree."""

import contextlib
import copy
import importlib

import torch

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Zoo:
    """The model of one worker. ``loader`` is the model's module (see the package's docstring).

    On ``device="meta"`` the model is built without data, in the time and memory of its module objects.
    """

    def __init__(self, model: dict, device: str):
        self.model, self.device = model, torch.device(device)
        self.on_meta = self.device.type == "meta"
        self.loader = importlib.import_module(model["loader"])
        with self.device if self.on_meta else contextlib.nullcontext():
            self._master = self.loader.build(model)
        self._weights = {}
        self.dense_count = None  # of one step, once it was counted

    def module(self, layout: str, dtype: str) -> torch.nn.Module:
        """A module of its own, so that hooks meet no other method; its weights are shared with others wherever they agree."""
        kind = (layout, dtype)
        if kind not in self._weights:
            self._weights[kind] = self._converted(
                lambda tensor: _as(tensor.to(self.device), DTYPES[dtype], LAYOUTS[layout])
            )
        return self._copied(self._weights[kind])

    def _converted(self, change) -> dict:
        """id of each parameter and buffer of the master -> the changed one, itself where nothing changes."""
        made = {}
        for tensor in (*self._master.parameters(), *self._master.buffers()):
            changed = change(tensor)
            if isinstance(tensor, torch.nn.Parameter) and changed is not tensor:
                changed = torch.nn.Parameter(changed, requires_grad=False)
            made[id(tensor)] = changed
        return made

    def _copied(self, tensors: dict) -> torch.nn.Module:
        """A copy of the master that holds ``tensors`` in the place of its own."""
        return copy.deepcopy(self._master, memo=dict(tensors))

    def inputs(self, picture: torch.Tensor, seed: int) -> tuple:
        """Arguments of one step for a picture, float32 on the device."""
        return tuple(part.to(self.device) for part in self.loader.inputs(self.model, picture, seed))

    def adapt(self, inputs: tuple, layout: str, dtype: str) -> tuple:
        """The same arguments in a method's dtype and layout; integer arguments (time steps) stay."""
        return tuple(
            part.to(DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
            if part.is_floating_point() and part.dim() == 4
            else part.to(DTYPES[dtype])
            if part.is_floating_point()
            else part
            for part in inputs
        )

    def without_data(self) -> torch.nn.Module:
        """The model on meta tensors, to count its MACs."""
        return self._copied(self._converted(lambda tensor: tensor.to("meta")))

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for tensor in self._master.parameters())

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of parameters and buffers in a dtype."""
        tensors = (*self._master.parameters(), *self._master.buffers())
        return sum(
            tensor.numel() * (DTYPES[dtype].itemsize if tensor.is_floating_point() else tensor.itemsize)
            for tensor in tensors
        )

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def _as(tensor: torch.Tensor, dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
    """A tensor in a dtype, if it has fractions, and a layout, if it is a map; itself where it is so already."""
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor
