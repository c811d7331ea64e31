"""From a composed configuration to jobs: one edit, a list of methods measured together, and what is measured."""

import contextlib
import importlib
import os
import platform

from sige.datasets import registry
from sige.datasets.edit import MissingSample, UnknownEdit
from sige.kernels import backends
from sige.runs import allocator, environment
from sige.runs.errors import UserError
from sige.runs.rows import canonical

_PROTOCOLS = ("interleaved", "paper")


def expand(config: dict, hardware_choices: dict[str, dict]) -> list[dict]:
    """Jobs of a resolved configuration, checked: UserError says what cannot be used, before anything runs.

    A job is a JSON-ready dict: experiment, model, hardware, dataset (options of the edit's data set), edit, methods,
    metrics, seed, ``config`` (all of these as text, what a result is looked up by) and ``note`` (where it stands in for
    another). ``hardware_choices`` are the configurations that ``hardware=auto`` chooses from.
    """
    metrics = dict(config["metric"] or {})
    # Speed needs something to be faster than: where time is measured, the dense ladder is in the same rounds.
    methods = {**((config.get("baseline") or {}) if "latency" in metrics else {}), **(config["method"] or {})}
    hardware = resolve_hardware(config["hardware"], hardware_choices)
    if hardware["device"] == "meta":  # tensors without values need no weights
        config = {**config, "model": {**config["model"], "weights": "random"}}
    _check(config, methods, metrics, hardware)
    jobs = []
    for edit in (config["edit"] or {}).values():
        for chosen, note in _stand_in(edit, config["dataset"]):
            owner = registry.owner(chosen).DATASET
            jobs.append(
                _job(
                    config,
                    hardware,
                    {"name": chosen, "dataset": owner, "paper_cell": edit.get("paper_cell", "")},
                    methods,
                    metrics,
                    note,
                )
            )
    if not jobs:
        raise UserError("there is nothing to run: name an edit, e.g. edit=brush-1.2.")
    return jobs


def _job(config, hardware, edit, methods, metrics, note):
    parts = {
        "experiment": config["experiment"],
        "model": config["model"],
        "hardware": hardware,
        "dataset": config["dataset"].get(edit["dataset"]) or {},
        "edit": edit,
        "methods": methods,
        "metrics": metrics,
        "seed": config["seed"],
    }
    threads = hardware.get("threads")
    text = canonical(parts)
    named = {**hardware, "machine": environment.machine(hardware["device"], threads)}
    return {**parts, "hardware": named, "config": text, "note": note}


def _stand_in(edit: dict, datasets: dict) -> list[tuple[str, str]]:
    """(edit, note) to run: the edit itself, and behind a sample that is not here also the one that stands in for it."""
    name = edit["name"]
    try:
        owner = registry.owner(name)
        owner.digest(name, **(datasets.get(owner.DATASET) or {}))
    except UnknownEdit as error:
        raise UserError(str(error)) from error
    except MissingSample:
        stand_in = edit.get("or_else")
        return [(name, "")] + ([(stand_in, f"stands in for {name}, which is not on this machine")] if stand_in else [])
    return [(name, "")]


def _check(config, methods, metrics, hardware):
    """Everything that can be known to be wrong before a model is loaded."""
    if not methods:
        raise UserError("there is no method to run: name one, e.g. method=sige.")
    if not metrics:
        raise UserError("there is nothing to measure: name a metric, e.g. metric=macs.")
    if "latency" in metrics and "error" not in metrics:
        raise UserError("metric=latency needs metric=error beside it: a speed without its error is not reported.")
    protocol = config["protocol"]
    if protocol not in _PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose {' or '.join(_PROTOCOLS)}.")
    _module(config["model"].get("loader"), f"model {config['model'].get('name')}: loader")
    for name, options in methods.items():
        runner = _module(options.get("runner"), f"method {name}: runner")
        if hasattr(runner, "check"):
            try:
                runner.check(options, config["model"])
            except UserError as error:
                raise UserError(f"method {name}: {error}") from error
    on_meta = hardware["device"] == "meta"
    for name, options in metrics.items():
        collect = _module(options.get("collect"), f"metric {name}: collect")
        if on_meta and not getattr(collect, "ON_META", False):
            raise UserError(
                f"metric={name} needs values, and hardware=meta has shapes alone; choose metric=[macs,state] or another hardware."
            )
    _check_dials(config["model"])


def _check_dials(model):
    """The dials that a model sets are by policy; a name that no policy has would be set for nothing."""
    from sige import POLICIES

    for policy in model.get("dials") or {}:
        if policy not in POLICIES:
            raise UserError(
                f"model {model['name']}: dials for the unknown policy {policy!r}; there are {', '.join(POLICIES)}."
            )


def _module(path, where):
    """Import a module that a configuration names."""
    try:
        return importlib.import_module(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the module {path!r}, which cannot be imported ({error}).") from error


def resolve_hardware(hardware: dict, choices: dict[str, dict]) -> dict:
    """``auto`` becomes cuda, mps or cpu, whichever is there; threads, allocator and kernel backend become what they will be."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "meta": True}
    resolved = dict(hardware)
    if hardware["device"] == "auto":
        device = next(name for name, there in found.items() if there)
        resolved = {
            **choices[device],
            **{key: value for key, value in hardware.items() if key not in ("name", "device") and value is not None},
        }
    device = resolved["device"]
    if device not in found:
        raise UserError(f"unknown hardware.device {device!r}; choose auto, {', '.join(found)}.")
    if not found[device]:
        raise UserError(
            f"hardware.device={device} is not available on this {platform.system()} machine; choose auto or cpu."
        )
    if resolved["dtype"] not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown hardware.dtype {resolved['dtype']!r}; choose float32, bfloat16 or float16.")
    if resolved.get("wait", "auto") not in ("auto", "spin", "sleep"):
        raise UserError(f"unknown hardware.wait {resolved['wait']!r}; choose auto, spin or sleep.")
    resolved["threads"] = (resolved.get("threads") or environment.cores()) if device == "cpu" else None
    resolved["allocator"] = allocator.resolve(resolved.get("allocator") or "retain", device)
    resolved["backend"] = _kernel_backend(resolved.get("backend"), device)
    if device != "meta" and resolved["backend"] != backends.usual(device):
        resolved["name"] += f"+{resolved['backend']}"  # in every row: its numbers are another thing's
    if resolved["backend"] == "triton" and os.environ.get("SIGE_TRITON_BOXES") == "1":
        resolved["name"] += "+boxes"
    return resolved


def _kernel_backend(wanted: str | None, device: str) -> str | None:
    """The kernel backend that serves the run: the one that the configuration or SIGE_BACKEND forces, else the device's own."""
    if device == "meta":
        return None  # nothing is computed
    try:
        with backends.forced(wanted) if wanted else contextlib.nullcontext():
            return backends.active(device)
    except (ValueError, RuntimeError) as error:
        remedy = "leave hardware.backend at null" if wanted else "unset SIGE_BACKEND"
        raise UserError(f"{error}.".replace("unset SIGE_BACKEND", remedy)) from error
