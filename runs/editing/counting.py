"""Multiply-accumulates of an editing method at full size, counted on the executed pipeline.

    count("diffedit", EditTask("a dog", "a cat", steps=50), model)     # model: conf/model/sd21_unet.yaml, resolved
    Count(method="diffedit", steps=50, calls=90, macs_total=150_437_402_214_400, ...)

The method runs as it always does, on a pipeline whose U-Net is the full-size network on the meta device: it sees the real
shapes, attention processors and gradients, computes nothing, and answers with noise. Every operator of it is counted at the
dispatcher, in sparse steps, in what a method computes beside the network, and in backward passes. The autoencoder and the
text encoder are small stand-ins and not counted, as in FISEdit's Table 3.

Where this differs from the paper's Table 3, which gives MACs of one step:

| row | printed | here |
|---|---|---|
| SDTP, SDIP | 1901 G | 2149 G; without attention products it would be 1521 G, so the tool that was used is not known |
| Prompt-to-Prompt | 1901 G, that of SDTP | a batch of four, two prompts with guidance: twice a step of SDTP |
| SDEdit | 1521 G = 1901 x 0.8 | 40 calls of 50: the same share, counted |
| DIFFEdit | 3041 G = 1901 x 1.6 | 10 calls for the mask; 40 backwards without guidance, each half of a step; 40 forwards |
| InstructPix2Pix | 4165 G = 1901 x 2.19 | a batch of three and the smaller text encoding of Stable Diffusion 1: 3223 G |
| PPAP, pix2pix-zero | not reported (memory) | counted, pix2pix-zero with its backward passes |
| FISEdit | one sparse step | ``macs_per_sparse_step``; ``macs_per_step`` is the mean over the edit with its dense steps |
"""

import contextlib
import dataclasses

import torch

from sige.macs import MacCounter
from sige.runs.editing import fisedit, registry
from sige.runs.editing.task import ORIGINAL, EditTask
from sige.runs.errors import JobFailure, UserError
from sige.runs.methods.session import merged_dials
from sige.runs.models import small_tokenizer, text_to_image


@dataclasses.dataclass(frozen=True)
class Count:
    """What an edit takes. The making of the original is left out, except where a method makes both at once.

    steps: of the sampler.   calls: of the U-Net.   macs_total: of the edit.   macs_per_step: macs_total over ``steps``.
    parts: {part of the run: (calls, macs)}.   macs_per_sparse_step: mean over FISEdit's sparse steps, None for other methods; the
    first of them also projects the new text, for all.
    """

    method: str
    steps: int
    calls: int
    macs_total: int
    macs_per_step: float
    parts: dict[str, tuple[int, int]]
    macs_per_sparse_step: float | None = None


def count(method: str, task: EditTask, model_config: dict) -> Count:
    """The :class:`Count` of a method on a task, with the U-Net of ``model_config`` (a model's resolved configuration).

    The picture's values do not matter, and neither does the mask but for FISEdit, which needs one: on the meta device there are no
    latents to find it from. Calls that are like an earlier one are not run again; sparse ones and those with gradients always are.
    JobFailure (invalid) for a U-Net of another kind than the method runs; UserError for FISEdit without a mask.
    """
    kind = registry.kind(method)
    pipe, tally = full_size_pipeline(model_config, kind)
    if method == "fisedit":
        task = _with_dials(task, model_config)
    mask = torch.ones(task.height // 8, task.width // 8, dtype=torch.bool) if task.mask is None else task.mask
    picture = torch.full((3, task.height, task.width), 0.5)
    with tally:
        result = registry.edit(method, pipe, dataclasses.replace(task, image=picture, mask=mask))
    if tally.count.unlisted:
        raise JobFailure("error", f"{method} runs operators that cannot be counted: {', '.join(tally.count.unlisted)}.")
    return _summed(method, task.steps, result, tally.by_call())


def _with_dials(task, model_config):
    """FISEdit's task with what the model's configuration changes of the policy, under what the task changes."""
    if task.mask is None:
        raise UserError("counting fisedit needs a mask: give task.mask, bool (h, w) at the latents' resolution.")
    options = {**fisedit.OPTIONS, **task.options}
    return dataclasses.replace(task, options={**task.options, "dials": merged_dials(options, model_config)})


def _summed(method, steps, result, macs):
    """Counts by part: parts follow each other in time, so the calls' MACs fall to them in order."""
    parts, place = {}, 0
    for part, calls in result.calls_by_part.items():
        parts[part] = (len(calls), sum(macs[place : place + len(calls)]))
        place += len(calls)
    parts.pop(ORIGINAL, None)
    calls, total = (sum(column) for column in zip(*parts.values(), strict=True))
    sparse_calls, sparse = parts.get("sparse", (0, 0))
    return Count(method, steps, calls, total, total / steps, parts, sparse / sparse_calls if sparse_calls else None)


def full_size_pipeline(model_config: dict, kind: str):
    """(pipeline, tally): a stock pipeline of a kind around the configured U-Net on the meta device, and what counts its calls."""
    config = model_config["config"]
    channels = text_to_image.KINDS[kind]
    if config["in_channels"] != channels:
        raise JobFailure(
            "invalid",
            f"{model_config['name']} takes {config['in_channels']} channels, a pipeline of the kind {kind!r} gives {channels}; "
            "count the method with its own model.",
        )
    pipe = text_to_image.small_pipeline(kind=kind, size=64)
    pipe.register_modules(
        vae=text_to_image.autoencoder(0, 64, channels=(8, 8, 8, 8)),
        text_encoder=text_to_image.text_encoder(0, small_tokenizer.make(), config["cross_attention_dim"]),
    )
    pipe.vae_scale_factor = 8
    pipe.image_processor.register_to_config(vae_scale_factor=8)
    tally = Tally()
    pipe.register_modules(unet=_unet(config, tally))
    return pipe, tally


def _unet(config, tally):
    """The network on the meta device, as a class of its own that takes and gives tensors of the CPU."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
    unet.__class__ = type("CountedUNet", (_OnMeta, UNet2DConditionModel), {})
    unet.tally = tally
    return unet


class Tally(MacCounter):
    """Counts meta tensors' operators by U-Net call; what runs on the CPU, in the sampler around the network, is not counted."""

    def __init__(self):
        super().__init__()
        self.starts, self.known = [], {}
        self._texts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = (x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
        if any(tensor.is_meta for tensor in tensors):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))

    def on_meta(self, text: torch.Tensor) -> torch.Tensor:
        """A text encoding without data, the same for the same: a session computes once what depends on the text alone."""
        if id(text) not in self._texts:
            self._texts[id(text)] = (text, text.detach().to("meta"))  # held, so that no other tensor gets its id
        return self._texts[id(text)][1]

    def by_call(self) -> list[int]:
        """MACs of each call, with what followed it before the next one."""
        ends = [*self.starts[1:], self.count.total]
        return [end - start for start, end in zip(self.starts, ends, strict=True)]


class _OnMeta:
    """Mixed into the network's class: its calls are moved to the meta device and answered with noise."""

    device = torch.device("cpu")  # where its callers find it

    def __call__(self, sample, timestep, encoder_hidden_states=None, **more):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        tally = self.tally
        tally.starts.append(tally.count.total)
        like = self._signature(sample, encoder_hidden_states)
        text = tally.on_meta(encoder_hidden_states)
        with _answering(self, tally.known.get(like)):
            output = super().__call__(_ToMeta.apply(sample), timestep, encoder_hidden_states=text, **more)
        made = output[0]
        if like in tally.known:
            tally.count.total += tally.known[like][1]
        elif like is not None:
            tally.known[like] = (made.shape, tally.count.total - tally.starts[-1])
        noise = torch.randn(made.shape, dtype=made.dtype, generator=torch.Generator().manual_seed(len(tally.starts)))
        return UNet2DConditionOutput(sample=noise) if more.get("return_dict", True) else (noise,)

    def _signature(self, sample, text):
        """What a call's cost depends on; None where it depends on more than can be said, and is counted each time."""
        if "forward" in self.__dict__ or (torch.is_grad_enabled() and sample.requires_grad):
            return None  # a session follows the call, or a backward pass
        hooks = [hook for module in self.modules() for hook in module._forward_hooks.values()]
        parts = [*(getattr(hook, "__self__", None) for hook in hooks), *self.attn_processors.values()]
        ours = [part for part in parts if not type(part).__module__.startswith("diffusers.")]
        states = [part.signature() if hasattr(part, "signature") else None for part in ours]
        if any(state is None for state in states):
            return None
        return tuple(sample.shape), tuple(text.shape), tuple(states)


@contextlib.contextmanager
def _answering(unet, known):
    """While the block runs, a call that is like a counted one ends at once; hooks before the network still hear of it."""
    if known is None:
        yield
        return
    shape, _ = known
    unet.__dict__["forward"] = lambda *_, **__: (torch.empty(shape, device="meta"),)
    try:
        yield
    finally:
        del unet.__dict__["forward"]


class _ToMeta(torch.autograd.Function):
    """A copy without data. What comes back as its gradient has none either: noise of the same shape stands in for it."""

    @staticmethod
    def forward(ctx, tensor):
        ctx.shape, ctx.dtype = tensor.shape, tensor.dtype
        return tensor.to("meta")

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn(ctx.shape, dtype=ctx.dtype, generator=torch.Generator().manual_seed(0))
