"""GauGAN's generator and GAN Compression's smaller ones: a label map in, a picture out, in one forward.

The config says ``kind``, spade or mobile, and ``channels``: GauGAN's ngf, or eight numbers as "32_32_32_48_32_24_24_32".

Trained weights are state dicts of the releases of SPADE, of GAN Compression or of SIGE. They differ in three ways, all of which are
taken: a block's convolutions of the labels stand one by one or merged, spectral normalisation is still to be divided out or is gone,
and the statistics of a compressed generator may be those of the wide one, of which the first channels count.
"""

import re
from pathlib import Path

import torch
from torch import nn

from sige.runs.errors import JobFailure
from sige.runs.models.networks.spade import REDUCTION, SpadeGenerator

CHANGED = (0,)
_RELEASE = "https://www.cs.cmu.edu/~sige/resources/models/gaugan/"
_KINDS = {"spade": False, "mobile": True}
# Standard deviation of random weights times the root of what they add up, by the name of the layer; see _randomise.
_GAINS = {
    "mlp_gamma_beta": 0.5,
    "mlp_gamma": 0.4,
    "mlp_beta": 0.4,
    "conv_0": 1.2,
    "conv_1": 0.8,
    "conv_s": 0.7,
    "conv_img": 0.8,
}
_LABEL_LAYERS = ("fc", "mlp_shared")


def weights_digest(model: dict) -> str:
    """Seed of random weights, or digest of the file of trained ones. JobFailure(missing_weights) where there is none."""
    from sige.runs.models import checkpoints

    return checkpoints.weights_digest(model, lambda: checkpoints.digest(_file(model)))


def _file(model: dict) -> Path:
    """The file of trained weights; JobFailure(missing_weights) says what to fetch and where to put it."""
    from sige.runs.models import checkpoints

    return checkpoints.released(model, _RELEASE, "generator")


def widths(config: dict) -> tuple[int, ...]:
    """The eight numbers of channels of a config. JobFailure(invalid) for what does not read so."""
    channels = config["channels"]
    if isinstance(channels, str) and re.fullmatch(r"\d+(_\d+){7}", channels):
        return tuple(int(number) for number in channels.split("_"))
    if isinstance(channels, int) and 0 < channels <= 1024:  # YAML reads an unquoted 32_32_... as one number
        return (channels,) * 8
    raise JobFailure(
        "invalid",
        f'channels are one number for all, such as 64, or eight in quotes, "32_32_32_48_32_24_24_32", not {channels!r}.',
    )


def build(model: dict) -> nn.Module:
    """The generator with random weights of the config's seed, or the trained ones. Without data on the meta device."""
    config = model["config"]
    if config["kind"] not in _KINDS:
        raise JobFailure("invalid", f"unknown kind {config['kind']!r} of {model['name']}; choose {', '.join(_KINDS)}.")
    torch.manual_seed(model["seed"])
    module = SpadeGenerator(widths(config), model["input"]["channels"], _KINDS[config["kind"]])
    if model["weights"] == "pretrained":
        _load(module, _file(model))
    else:
        _randomise(module)
    return module.float().eval().requires_grad_(False)


def _randomise(module: nn.Module) -> None:
    """Normal weights that keep maps near unit size through the depth, as trained ones with their batch norms do.

    PyTorch's own would shrink them block by block, until labels hardly matter. A label map is nearly all zeros: what a
    convolution of it adds up is one value a tap.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            taps = layer.weight[0, 0].numel()
            kind = next((part for part in name.split(".") if part in _LABEL_LAYERS or part in _GAINS))
            scale = taps**-0.5 if kind in _LABEL_LAYERS else _GAINS[kind] * (layer.weight[0].numel()) ** -0.5
            nn.init.normal_(layer.weight, std=scale)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _load(module: nn.Module, path: Path) -> None:
    from sige.runs.models import checkpoints

    state = {key.removeprefix("module."): value for key, value in checkpoints.load_state(path).items()}
    state = fit_statistics(merge(without_spectral_norm(state)), module)
    checkpoints.assign(module, state, lambda key: key)


def without_spectral_norm(state: dict) -> dict:
    """A state dict in which each ``weight_orig`` has become ``weight``: divided by its largest singular value, as u and v estimate it.

    A ``weight`` beside it (PyTorch before 1.0 kept what was used last) is taken as it is. Without ``weight_v``, v follows from u.
    """
    plain = {key: value for key, value in state.items() if not re.search(r"\.weight_(orig|u|v)$", key)}
    for key in (key for key in state if key.endswith(".weight_orig")):
        name, weight = key.removesuffix("_orig"), state[key]
        if name in state:
            continue
        if f"{name}_u" not in state:
            plain[key] = weight  # not a spectral norm: the report names it
            continue
        matrix, u = weight.flatten(1), state[f"{name}_u"]
        v = state.get(f"{name}_v")
        v = nn.functional.normalize(matrix.T @ u, dim=0, eps=1e-12) if v is None else v
        plain[name] = weight / torch.dot(u, matrix @ v)
    return plain


def merge(state: dict) -> dict:
    """A state dict in which the layers that we compute as one are one: a block's ``norm_*.mlp_shared`` as ``mlp_shared`` (in the order
    0, 1, s), and plain ``mlp_gamma`` and ``mlp_beta`` as ``mlp_gamma_beta``. A merged one comes back as it is."""
    merged, groups = {}, {}
    for key, value in state.items():
        shared = re.fullmatch(r"(\w+)\.norm_([01s])\.(mlp_shared\.0\.\w+)", key)
        scale = re.fullmatch(r"(\w+\.norm_[01s])\.mlp_(gamma|beta)\.(weight|bias)", key)
        if shared:
            groups.setdefault(f"{shared[1]}.{shared[3]}", []).append(("01s".index(shared[2]), value))
        elif scale:
            groups.setdefault(f"{scale[1]}.mlp_gamma_beta.{scale[3]}", []).append((scale[2] == "beta", value))
        else:
            merged[key] = value
    for key, parts in groups.items():
        merged[key] = torch.cat([value for _, value in sorted(parts, key=lambda part: part[0])])
    return merged


def fit_statistics(state: dict, module: nn.Module) -> dict:
    """A state dict whose batch-norm statistics have the module's width: the first channels of a wider generator's.

    The counters of batches, which old releases lack and inference does not use, are put in where they are missing.
    """
    fitted = dict(state)
    for key, wanted in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            fitted.setdefault(key, torch.zeros_like(wanted))
        elif "param_free_norm" in key and key in state and state[key].dim() == 1:
            fitted[key] = state[key][: len(wanted)]
    return fitted


def inputs(model: dict, picture: torch.Tensor, seed: int) -> tuple[torch.Tensor]:
    """The label map (1, 36, H, W) of an edit, as it is; there is no noise, so ``seed`` changes nothing."""
    channels, height, width = picture.shape
    wanted = model["input"]["channels"]
    if channels != wanted:
        raise JobFailure(
            "invalid",
            f"{model['name']} takes label maps of {wanted} channels, not {channels}; choose edit=cityscapes-pair or labels-1.2.",
        )
    if height % REDUCTION or width % REDUCTION:
        raise JobFailure(
            "invalid",
            f"{model['name']} takes label maps whose sides are multiples of {REDUCTION}, not {height}x{width}.",
        )
    return (picture[None],)


def forward(module: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """The picture, (1, 3, H, W) in [-1, 1]."""
    return module(labels)
