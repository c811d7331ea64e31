"""Guards: what an edit does not declare must not have changed, and a model that cannot be followed is refused."""

import functools
import inspect

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from sige.answers import waits
from sige.errors import ChangedInputError, MaskError, ModelError, NonFiniteError
from sige.masks import reduce_max


def find_model(model):
    """The module to follow: ``model`` itself, or the U-Net or transformer of a diffusers pipeline. ModelError otherwise."""
    if not isinstance(model, nn.Module):
        for name in ("unet", "transformer"):
            if isinstance(getattr(model, name, None), nn.Module):
                return find_model(getattr(model, name))
        raise ModelError(
            f"{type(model).__name__} is neither a torch module nor a pipeline with a unet or a transformer"
        )
    wrapped = {
        "DataParallel": "its .module",
        "DistributedDataParallel": "its .module",
        "OptimizedModule": "its ._orig_mod",
    }
    kind = type(model).__name__
    if kind in wrapped:
        raise ModelError(f"the model is a {kind}: give the session {wrapped[kind]} instead, each operator must be seen")
    for path, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            raise ModelError(f"{path or 'the model'} is compiled: give the session the model before compile()")
    return model


def is_unet_pipeline(model):
    """Whether ``model`` is a diffusers pipeline around a U-Net: callable, no module itself, with a scheduler."""
    return _is_pipeline_of("unet", model)


def is_transformer_pipeline(model):
    """Whether ``model`` is a diffusers pipeline around a transformer, without a U-Net."""
    return _is_pipeline_of("transformer", model) and not _is_pipeline_of("unet", model)


def _is_pipeline_of(part, model):
    has = isinstance(getattr(model, part, None), nn.Module)
    return not isinstance(model, nn.Module) and has and hasattr(model, "scheduler") and callable(model)


@functools.lru_cache(maxsize=64)
def _signature(kind):
    return inspect.signature(kind.forward)


def named_inputs(model, args, kwargs):
    """The arguments of a forward call by name: {"sample": tensor, "timestep": 500, ...}, nested ones as ``name.key``."""
    try:
        bound = _signature(type(model)).bind(model, *args, **kwargs).arguments
        bound.pop(next(iter(bound)))
    except TypeError:
        bound = {**{f"argument {i}": value for i, value in enumerate(args)}, **kwargs}
    leaves = tree_flatten_with_path(dict(bound))[0]
    return {
        ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path): value
        for path, value in leaves
    }


def token_map(inputs, grid):
    """Name of the input that is a map of tokens (B, H*W, C) on ``grid`` (H, W): the first that fits. MaskError when none does."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        if value.dim() == 3 and value.is_floating_point() and value.shape[1] == grid[0] * grid[1]:
            return name
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
    raise MaskError(
        f"token_grid={tuple(grid)} asks for an input (B, {grid[0] * grid[1]}, C), the model got {shapes}: give the rows and columns "
        "of the model's image tokens"
    )


def as_map(tokens, grid):
    """Tokens (B, H*W, C) viewed as the map (B, C, H, W) that they are."""
    return tokens.unflatten(1, tuple(grid)).permute(0, 3, 1, 2)


def autocast_state(device_type):
    """What autocast does on a device: (enabled, dtype). Nothing on the meta device, which has none."""
    if device_type == "meta":
        return False, None
    enabled = torch.is_autocast_enabled(device_type)
    return enabled, torch.get_autocast_dtype(device_type) if enabled else None


def check_autocast(inputs, recorded):
    """ChangedInputError when autocast does not do for ``inputs`` what it did while recording."""
    state = autocast_state(device_of(inputs).type)
    if state != recorded:
        raise ChangedInputError(
            f"autocast (enabled, dtype) is {state}, the recording had {recorded}: use the same for both"
        )


def check_finite(inputs, answers):
    """NonFiniteError naming the first floating-point input that holds NaN or infinity, as soon as ``answers`` (`Answers`) tells."""
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.is_meta:
            # On a CPU one pass where all is well: a sum is finite unless a term is not, or it overflows.
            if waits(value.device) or not torch.isfinite(value.sum()):
                answers.ask(~torch.isfinite(value).all(), functools.partial(_not_finite, name, tuple(value.shape)))


def _not_finite(name, shape):
    raise NonFiniteError(f"input {name!r} of shape {shape} holds NaN or infinity: give finite values")


def images(inputs):
    """The inputs that are maps (B, C, H, W), by name."""
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() == 4}


def device_of(inputs):
    """The device of the first input that is a tensor; the CPU where none is."""
    return next((value.device for value in inputs.values() if isinstance(value, torch.Tensor)), torch.device("cpu"))


def fit_mask(mask, recorded):
    """A mask (B or 1, H, W) broadcast to the recorded batch.

    Its resolution is that of a recorded input map, or finer by a whole factor: that of the picture behind a latent. MaskError
    when it is neither.
    """
    maps = images(recorded)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in maps.items()) or "no map (B, C, H, W) at all"
    fitting = [value for value in maps.values() if _finer(mask.shape[1:], value.shape[2:])]
    if not fitting:
        raise MaskError(
            f"the edit mask is {tuple(mask.shape[1:])}, the recording has {shapes}: give the mask at that resolution, or finer by a "
            "whole factor"
        )
    batch = fitting[0].shape[0]
    if mask.shape[0] not in (1, batch):
        raise MaskError(
            f"the edit mask has batch {mask.shape[0]}, the recording has {shapes}: give one mask, or one a sample"
        )
    return mask.expand(batch, -1, -1)


def _finer(size, map_size):
    factors = {side / other for side, other in zip(size, map_size)}
    return len(factors) == 1 and factors.pop().is_integer()


class Inside:
    """Where a mask (B, H, W), True or False on any device, lets maps of its resolution or coarser differ."""

    def __init__(self, mask):
        self._mask, self._made = mask, {}

    def of(self, image):
        """The mask (B, h, w) at the resolution of a map (B, C, h, w), on its device; None where it does not fit."""
        mask = self._mask
        if image.dim() != 4 or image.shape[0] != mask.shape[0] or not _finer(mask.shape[1:], image.shape[2:]):
            return None
        key = image.device, *image.shape[2:]
        if key not in self._made:
            there = mask.to(image.device, non_blocking=waits(image.device))  # a copy that the host need not wait for
            self._made[key] = reduce_max(there, *image.shape[2:])
        return self._made[key]


def check_unchanged(inputs, recorded, inside, declared, answers):
    """ChangedInputError naming the first input that differs where the edit did not declare a change.

    inside: an `Inside` of the edit's mask.   answers: an `Answers`; what it tells later is said of ``inputs`` as they are then.
    """
    for name in dict.fromkeys((*recorded, *inputs)):
        if name not in inputs or name not in recorded:
            where = "the recording" if name in recorded else "the edit"
            raise ChangedInputError(
                f"only {where} has an input {name!r}: call the model with the same arguments as while recording"
            )
        if any(name == item or name.startswith(f"{item}.") for item in declared):
            continue
        _compare(name, inputs[name], recorded[name], inside, answers)


def _compare(name, now, then, inside, answers):
    if isinstance(now, torch.Tensor) != isinstance(then, torch.Tensor):
        now, then = (x.tolist() if isinstance(x, torch.Tensor) else x for x in (now, then))
    if not isinstance(now, torch.Tensor):
        if now != then:
            raise ChangedInputError(
                f"input {name!r} is {now!r}, the recording has {then!r}: an edit may change only the masked image"
            )
        return
    if now.shape != then.shape or now.dtype != then.dtype:
        raise ChangedInputError(
            f"input {name!r} is {tuple(now.shape)} {now.dtype}, the recording has {tuple(then.shape)} {then.dtype}: they must agree"
        )
    if now.is_meta:
        return
    allowed = inside.of(now)
    if allowed is None:
        answers.ask((now != then).any(), functools.partial(_differs, name, now, then))
    else:
        answers.ask(_differs_outside(now, then, allowed), functools.partial(_changed_outside, name, now, then, allowed))


def _differs_outside(now, then, inside):
    """Whether two maps (B, C, H, W) differ at a position that is not ``inside`` (B, H, W)."""
    differs = (now != then).permute(0, 2, 3, 1)
    if waits(now.device):
        return (differs & ~inside[..., None]).any()
    # One pass, and the positions inside: picking these would wait for a device.
    return torch.count_nonzero(differs) != torch.count_nonzero(differs[inside])


def _changed_outside(name, now, then, inside):
    outside = (now != then).any(1) & ~inside
    sample, y, x = outside.nonzero()[0].tolist()
    raise ChangedInputError(
        f"input {name!r} differs from the recording at {int(outside.sum())} positions outside the mask, the first at row {y}, "
        f"column {x} of sample {sample}: give a mask that is True wherever the input changed"
    )


def _differs(name, now, then):
    shown = f" ({then.flatten().tolist()} -> {now.flatten().tolist()})" if now.numel() <= 4 else ""
    raise ChangedInputError(
        f"input {name!r} differs from the recording{shown}: an edit may change only the masked image; record again, or declare it "
        f"with edit(mask, changed=({name!r},))"
    )


def declared(inputs, changed):
    """The tensors among the inputs that an edit declares changed; None when it declares something else changed, such as a number."""
    found = [
        value for name, value in inputs.items() if any(name == item or name.startswith(f"{item}.") for item in changed)
    ]
    return found if all(isinstance(value, torch.Tensor) for value in found) else None
