"""One run of a stock pipeline: what is asked for, and which pipeline's ``__call__`` answers."""

import dataclasses
import inspect

import torch

from sige.errors import ChangedInputError, ModelError, PromptError
from sige.pipelines import checks, fitting
from sige.pipelines.unconditional import Unconditional

_OURS = ("output_type", "return_dict", "generator", "latents", "callback_on_step_end", "num_images_per_prompt")
_OURS += ("timesteps", "sigmas", "self", "kwargs")


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that determines a picture, but for weights and scheduler.

    prompts, negatives: list of B texts, or None.   seeds: list of B.   image: float (B, 3, H, W) in [0, 1], on the CPU.   mask_image:
    bool (B, H, W), True where an in-painting pipeline paints, on the CPU.   weights: of each prompt {word: factor}, or None.
    options: further arguments of the pipeline.
    """

    prompts: list | None
    negatives: list | None
    seeds: list
    steps: int
    guidance_scale: float
    height: int | None = None
    width: int | None = None
    image: torch.Tensor | None = None
    mask_image: torch.Tensor | None = None
    strength: float | None = None
    weights: list | None = None
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def batch(self):
        """Number of pictures."""
        return len(self.seeds)

    @property
    def text(self):
        """(prompts, weights of their words): what a step's conditioning is made from."""
        return self.prompts, self.weights


def as_list(what, value, batch, kind):
    """``value``, one for all or a list, as a list of ``batch``. PromptError when the number is another one."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * batch
    if len(values) != batch:
        raise PromptError(f"{len(values)} {what} for {batch} pictures: give one, or one a picture")
    for item in values:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise PromptError(f"{what}: {item!r} is {type(item).__name__}, give {kind.__name__}")
    return values


def make_seeds(seed, batch):
    """Seeds of a batch: those given, or ``seed``, ``seed + 1``, ... from one number."""
    seeds = seed
    if isinstance(seed, int) and not isinstance(seed, bool):
        seeds = [seed + number for number in range(batch)]
    return as_list("seeds", seeds, batch, int)


def read_weights(weights, batch):
    """Weights of each picture's words: from one {word: factor} for all, or a list with one or None a picture. None: no weights."""
    if weights is None:
        return None
    weights = list(weights) if isinstance(weights, (list, tuple)) else [weights] * batch
    if len(weights) != batch or not all(one is None or isinstance(one, dict) for one in weights):
        raise PromptError(
            f"prompt_weights={weights!r} for {batch} pictures: give {{word: factor}}, or a list with one a picture"
        )
    return weights if any(weights) else None


def check_strength(strength, image):
    """ChangedInputError unless ``strength`` is in (0, 1] and there is a picture that it is for."""
    if strength is None:
        return
    if image is None:
        raise ChangedInputError(f"strength={strength} without an image: it says how much of a picture is made anew")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise ChangedInputError(f"strength={strength!r}: give a number above 0 and at most 1")


def read_request(
    pipe,
    prompt,
    seed,
    steps,
    guidance_scale,
    negative_prompt,
    height=None,
    width=None,
    image=None,
    mask_image=None,
    strength=None,
    prompt_weights=None,
    **options,
):
    """The :class:`Request` of a picture to be generated; errors name the argument that cannot be used."""
    takes = arguments(pipe)
    if (prompt is None) != ("prompt" not in takes):
        wants = "needs a prompt" if "prompt" in takes else "knows no prompt"
        raise PromptError(f"{type(pipe).__name__} {wants}: prompt={prompt!r}")
    for name in options:
        if name in _OURS or name not in takes:
            raise PromptError(f"{name}={options[name]!r} is nothing that can be chosen for {type(pipe).__name__} here")
    batch = next((len(value) for value in (prompt, seed) if isinstance(value, (list, tuple))), 1)
    check_strength(strength, image)
    if mask_image is not None and image is None:
        raise ChangedInputError("mask_image without an image: in-painting needs the picture to paint into")
    image = None if image is None else fitting.fit_image(image, batch)
    if mask_image is not None:
        size = tuple(image.shape[2:])
        mask_image = fitting.fit_mask(mask_image, batch, size, size)[0]
    return Request(
        None if prompt is None else as_list("prompts", prompt, batch, str),
        None if negative_prompt is None else as_list("negative prompts", negative_prompt, batch, str),
        make_seeds(seed, batch),
        checks.count("steps", steps),
        guidance_scale,
        *(height, width, image, mask_image, strength),
        read_weights(prompt_weights, batch),
        options,
    )


def arguments(pipe):
    """Names that a pipeline's call takes."""
    return inspect.signature(type(pipe).__call__).parameters


def pipeline_for(pipe, request):
    """The pipeline that answers a request: ``pipe`` itself, or its sister of the same parts that takes a picture."""
    takes = arguments(pipe)
    if "prompt" not in takes:
        if request.mask_image is not None:
            raise ModelError(f"{type(pipe).__name__} cannot paint into a mask: give it an image and a strength")
        return Unconditional(pipe)
    if request.image is None:
        if "image" in takes and takes["image"].default is inspect.Parameter.empty or "mask_image" in takes:
            raise ChangedInputError(f"{type(pipe).__name__} starts from a picture: give image=")
        return pipe
    if request.mask_image is not None:
        return pipe if "mask_image" in takes else _sister(pipe, "AutoPipelineForInpainting")
    if "mask_image" in takes:
        raise ChangedInputError(f"{type(pipe).__name__} paints into a mask: give mask_image=")
    return pipe if "image" in takes else _sister(pipe, "AutoPipelineForImage2Image")


def _sister(pipe, name):
    import diffusers

    try:
        other = getattr(diffusers, name).from_pipe(pipe)
    except ValueError as error:
        raise ModelError(
            f"diffusers knows no pipeline that does this with the parts of {type(pipe).__name__}"
        ) from error
    other._progress_bar_config = getattr(pipe, "_progress_bar_config", {})
    return other


def number_of_steps(pipe, request):
    """How often a request's pipeline will call its U-Net, asked of the scheduler and of the pipeline's own reading of strength."""
    pipe.scheduler.set_timesteps(request.steps)
    timesteps = pipe.scheduler.timesteps
    if request.image is not None and hasattr(pipe, "get_timesteps"):
        default = arguments(pipe)["strength"].default
        strength = default if request.strength is None else request.strength
        timesteps, _ = pipe.get_timesteps(request.steps, strength, "cpu")
    return len(timesteps)


def run(pipe, request, after_step):
    """Run a pipeline that :func:`pipeline_for` gave, to the end. Returns its pictures, float32 (B, 3, H, W) in [0, 1].

    after_step: ``after_step(pipe, number, timestep, latents) -> latents`` after each scheduler step.
    """

    def callback(pipe, number, timestep, tensors):
        return {"latents": after_step(pipe, number, timestep, tensors["latents"])}

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
    given = {
        "num_inference_steps": request.steps,
        "generator": generators if len(generators) > 1 else generators[0],
        "callback_on_step_end": callback,
        "image": request.image,
        "strength": None if request.image is None else request.strength,
    }
    takes, mask = arguments(pipe), request.mask_image
    given |= {
        "batch_size": request.batch,
        "prompt": request.prompts,
        "negative_prompt": request.negatives,
        "guidance_scale": request.guidance_scale,
        "height": request.height,
        "width": request.width,
        "mask_image": None if mask is None else mask[:, None].float(),
        "output_type": "pt",
        **request.options,
    }
    pictures = pipe(**{name: value for name, value in given.items() if name in takes and value is not None})
    return getattr(pictures, "images", pictures).float()
