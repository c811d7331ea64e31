"""The path of a run: its latents after each step, and what the scheduler remembered then.

Multistep schedulers (DPM-Solver++, PNDM, UniPC and others) keep earlier model outputs or samples. A sparse step may change them
inside the mask only, as it does the latents, so both are put back from the recording everywhere else.
"""

import dataclasses

import torch


@dataclasses.dataclass
class Trajectory:
    """Of each step of a run: latents (B, C, h, w) after it, the scheduler's tensors of that shape by place, time step, and text.

    A text is (prompts, weights of their words). Steps may differ in it: SDEdit with a new prompt leaves the steps before it begins.
    """

    latents: list = dataclasses.field(default_factory=list)
    history: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)
    texts: list = dataclasses.field(default_factory=list)

    def add(self, latents, history, timestep, text):
        """Append a step."""
        self.texts.append(text)
        self.latents.append(latents.clone())
        self.history.append({place: tensor.clone() for place, tensor in history.items()})
        self.times.append(float(timestep))

    def copy(self):
        """Another list of the same tensors: an edit replaces its steps."""
        return Trajectory(*(list(part) for part in (self.latents, self.history, self.times, self.texts)))

    def set(self, number, latents, history, text):
        """Replace a step."""
        self.latents[number], self.texts[number] = latents.clone(), text
        self.history[number] = {place: tensor.clone() for place, tensor in history.items()}

    def __len__(self):
        return len(self.latents)


def scheduler_tensors(scheduler, shape):
    """What a scheduler remembers of the latents' shape: {attribute, or (attribute, index in its list): tensor}."""
    found = {}
    for name, value in vars(scheduler).items():
        if _is_map(value, shape):
            found[name] = value
        elif isinstance(value, list):
            found.update({(name, index): item for index, item in enumerate(value) if _is_map(item, shape)})
    return found


def put_back(mask, now, recorded):
    """``now`` (B, C, h, w) inside a mask (B, h, w), ``recorded`` elsewhere, bit for bit."""
    return torch.where(mask[:, None].to(now.device), now, recorded.to(now.device, now.dtype))


def put_back_history(scheduler, shape, mask, recorded):
    """Put the scheduler's tensors back outside the mask, where the recording has them too.

    A run that starts later than the recorded one has none at first: its own then count.
    """
    for place, tensor in scheduler_tensors(scheduler, shape).items():
        if place in recorded:
            blended = put_back(mask, tensor, recorded[place])
            if isinstance(place, tuple):
                getattr(scheduler, place[0])[place[1]] = blended
            else:
                setattr(scheduler, place, blended)


def _is_map(value, shape):
    return isinstance(value, torch.Tensor) and value.shape == shape and value.is_floating_point()
