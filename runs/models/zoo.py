"""One loaded model and the copies of it that methods need, sharing weights wherever layout and dtype agree."""

import copy
import importlib

import torch

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Zoo:
    """The model of one worker. ``loader`` is the model's module (see the package's docstring)."""

    def __init__(self, model: dict, device: str):
        self.model, self.device = model, torch.device(device)
        self.loader = importlib.import_module(model["loader"])
        self._master = self.loader.build(model)
        self._weights = {}
        self.dense_count = None  # of one step, once it was counted

    def module(self, layout: str, dtype: str) -> torch.nn.Module:
        """A module of its own, so that hooks meet no other method; its weights are shared with others of its kind."""
        kind = (layout, dtype)
        if kind not in self._weights:
            made = copy.deepcopy(self._master).to(self.device)
            made = made if dtype == "float32" else made.to(DTYPES[dtype])
            self._weights[kind] = made.to(memory_format=LAYOUTS[layout])
        source = self._weights[kind]
        shared = {id(tensor): tensor for tensor in (*source.parameters(), *source.buffers())}
        return copy.deepcopy(source, memo=shared)

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

    def on_meta(self) -> torch.nn.Module:
        """The model without data, to count its MACs."""
        return copy.deepcopy(self._master).to("meta")

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
