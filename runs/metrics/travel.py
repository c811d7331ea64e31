"""What must be brought to the device for one step of an edit, beside what keeping every activation would take."""

import torch

from sige.runs.metrics import Reading

ORDER = 35
ON_META = True  # needs shapes, no values
_MIB = 1 << 20
_MAPS = ("conv_input", "resited", "exit")  # kinds of remembered maps of which an edit reads the ring around its mask


def collect(bench, loop_steps):
    """Rows in MiB. For a method of the engine ``travel_bytes.<kind>`` and ``travel_bytes.total``, what a step of this edit reads of
    what is remembered, and ``travel_ring_share``, the ring's share of the maps that it belongs to. For a dense method
    ``state_bytes.all_activations``: the outputs of all convolutions and linear layers of a step, which a cache without any system
    keeps; with scope ``loop`` those of ``loop_steps`` steps.
    """
    everything = all_activations(bench.zoo, bench.original) / _MIB
    for method, runner in bench.runners.items():
        session = getattr(runner, "session", None)
        if session is None:
            note = "outputs of every convolution and linear layer"
            yield Reading(method, "state_bytes.all_activations", everything, "MiB", reason=note)
            loop, told = everything * loop_steps, f"{note}, {loop_steps} steps"
            yield Reading(method, "state_bytes.all_activations", loop, "MiB", scope="loop", reason=told)
            continue
        travels = session.travel_bytes(bench.mask)
        for kind, size in travels.items():
            yield Reading(method, f"travel_bytes.{kind}", size / _MIB, "MiB")
        yield Reading(method, "travel_bytes.total", sum(travels.values()) / _MIB, "MiB")
        maps = sum(size for kind, size in session.state_bytes().items() if kind in _MAPS)
        if maps:
            yield Reading(method, "travel_ring_share", travels["ring"] / maps, "fraction")


def all_activations(zoo, inputs) -> int:
    """Bytes of the outputs of all convolutions and linear layers of one dense step in float32."""
    total, module = 0, zoo.without_data()

    def add(layer, given, output):
        nonlocal total
        total += output.numel() * torch.float32.itemsize

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        zoo.loader.forward(module, *(part.to("meta") for part in inputs))
    return total
