"""Where the time of one step goes, by class of operator, and the peak of live memory; one profiled, untimed pass."""

import collections
import contextlib

import torch
from torch.autograd import DeviceType

from sige.runs.metrics import Reading

ORDER = 70
MIB = 1 << 20
CLASSES = ("conv", "gemm", "attention", "gather_scatter", "norm", "pointwise", "other")
# The first class with a matching part of the operator's name, so the order matters.
_PARTS = {
    "attention": ("attention", "softmax", "sdpa", "flash", "fmha"),
    "conv": ("conv", "product"),  # the latter is Triton's kernel of convolutions, and of linear layers on rows
    "norm": ("norm", "statistics", "affine"),
    "gather_scatter": (
        "gather",
        "scatter",
        "exchange",
        "index",
        "copy",
        "clone",
        "cat",
        "pad",
        "upsample",
        "interpolate",
        "take",
        "put",
        "stack",
        "slice",
        "nonzero",
        "to",
        "contiguous",
    ),
    "gemm": ("addmm", "bmm", "mm", "linear", "matmul", "gemm", "einsum", "baddbmm", "project"),
    "pointwise": (
        "activate",
        "silu",
        "sigmoid",
        "relu",
        "gelu",
        "add",
        "mul",
        "sub",
        "div",
        "exp",
        "sqrt",
        "pow",
        "neg",
        "fill",
        "zero",
        "clamp",
        "where",
        "eq",
        "ne",
        "lt",
        "gt",
        "le",
        "ge",
        "sin",
        "cos",
        "mean",
        "sum",
        "var",
        "max",
        "amax",
        "all",
        "any",
        "abs",
        "arange",
        "elementwise",
        "vectorized",
    ),
}
_WHOLE_WORDS = {
    "exp",
    "to",
    "put",
    "eq",
    "ne",
    "lt",
    "gt",
    "le",
    "ge",
    "mm",
    "cat",
    "add",
    "sub",
    "max",
    "all",
    "any",
    "pad",
}


def classify(operator: str) -> str:
    """Class of an operator by its name, e.g. ``aten::mkldnn_convolution`` -> ``conv``."""
    name = operator.split("::")[-1].lower().rstrip("_").removeprefix("_")
    words = set(name.replace("<", "_").split("_"))
    for group, parts in _PARTS.items():
        if any(part in words if part in _WHOLE_WORDS else part in name for part in parts):
            return group
    return "other"


def collect(bench):
    """Rows ``time_share.<class>`` (fractions of the operators' own time, summing to 1) and ``peak_memory`` in MiB.

    Peak memory is weights + remembered state + the peak of tensors alive during the step (from the profiler's record of
    allocations on a CPU, from the allocator's own count on CUDA). Reported by neither: memory that libraries hold.
    """
    for method, runner in bench.runners.items():
        shares, live = _profile(bench, method)
        total = sum(shares.values())
        for group in CLASSES:
            if total:
                yield Reading(method, f"time_share.{group}", shares[group] / total, "fraction")
        if live is not None:
            held = bench.zoo.weight_bytes(runner.dtype) + sum(runner.state_bytes().values())
            yield Reading(method, "peak_memory", (held + live) / MIB, "MiB")


def _profile(bench, method):
    """Own time by class (any unit) and the peak of bytes allocated in one forward (None where it cannot be known)."""
    from torch.profiler import ProfilerActivity, profile

    cuda = bench.zoo.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    profiler = profile(activities=activities, profile_memory=not cuda, acc_events=True)
    before = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.zoo.device)
        before = torch.cuda.memory_allocated(bench.zoo.device)
    bench.step(method, around=lambda: _entered(profiler))
    if cuda:
        return _of_kernels(profiler.events()), torch.cuda.max_memory_allocated(bench.zoo.device) - before
    shares = dict.fromkeys(CLASSES, 0.0)
    for event in profiler.events():
        shares[_class_of(event)] += event.self_cpu_time_total
    if bench.zoo.device.type != "cpu":
        return shares, None
    return shares, _peak(profiler)


def _of_kernels(events) -> dict[str, float]:
    """Time of a GPU's kernels by class: that of the operator which launched one, or else, as of Triton's and of a CUDA graph's, that of
    its own name. The profiler tells each kernel as an event of its own, and once more with its operator if it has one."""
    shares, alone = dict.fromkeys(CLASSES, 0.0), collections.Counter()
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                shares[_class_of(event)] += kernel.duration
                alone[kernel.name] -= kernel.duration
        elif not event.is_user_annotation:
            alone[event.name] += event.self_device_time_total
    for name, time in alone.items():
        shares[classify(name)] += max(time, 0.0)
    return shares


def _class_of(event) -> str:
    """Class of one profiled call: what a convolution, an attention or a norm does inside is part of it, except for
    moving rows (the matrix product of a convolution is ``conv``, the gathering before it ``gather_scatter``).
    """
    group = classify(event.name)
    parent = event.cpu_parent
    while parent is not None and group != "gather_scatter":
        outer = classify(parent.name)
        if outer in ("conv", "attention", "norm"):
            group = outer
        parent = parent.cpu_parent
    return group


@contextlib.contextmanager
def _entered(profiler):
    with profiler:
        yield


def _peak(profiler) -> int:
    """Highest running sum of the profiled allocations and frees, in bytes above the level at the start."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
