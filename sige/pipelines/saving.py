"""A pipeline's session as one saved recording: steps of U-Net, decoder and encoder in a row, everything else beside them.

One folder with one manifest, so a crash leaves either the whole earlier session or the whole new one, see ``sige.state.folder``.
"""

import dataclasses

import torch
from torch.utils._pytree import tree_map

from sige.errors import StorageError
from sige.pipelines.attention_control import AttentionControl
from sige.pipelines.pictures import Picture
from sige.pipelines.sampling import Request
from sige.pipelines.trajectory import Trajectory
from sige.pipelines.vae import Autoencoder
from sige.session import Session
from sige.state import folder as store


def parts(session):
    """The sessions that are saved, in order: U-Net, decoder, encoder; None where there is none."""
    return session, session.vae.decoder, session.vae.encoder


def pack(session, extra):
    """(steps, settings, extra) of a generated session, as ``sige.state.folder`` stores them."""
    steps = [step for part in parts(session) if part is not None for step in part._steps]
    control = session.control
    pipeline = {
        "models": _models(session.pipe),
        "counts": [0 if part is None else part.recorded_steps for part in parts(session)],
        "vae_policy": session.vae.policy,
        "refresh_every": session.refresh_every,
        "commits": session._commits,
        "scheduler": session._scheduler,
        "request": _fields(session.request),
        "trajectory": _fields(session.trajectory),
        "picture": _fields(session.original),
        "encoded": session.vae.encoded,
        "control_prompts": session._control_prompts,
        "control": None if control is None else (control.calls, control.max_positions, control.branch, control._maps),
    }
    settings = {**session._settings(), "pipeline": type(session.pipe).__name__}
    return steps, settings, {"pipeline": pipeline, "extra": extra}


def unpack(session, folder, steps, extra, device):
    """Give a session what was packed, its tensors on ``device``, but for what its request has on the CPU.

    StorageError where the pipeline's other models are not those of the recording.
    """
    saved = extra["pipeline"]
    if saved["models"] != _models(session.pipe):
        raise StorageError(
            f"{folder} was recorded with {saved['models']}, this pipeline has {_models(session.pipe)}: load it with the models that it "
            "was recorded with"
        )
    session.vae = Autoencoder(getattr(session.pipe, "vae", None), saved["vae_policy"])
    if saved["counts"][2]:
        session.vae.encoder = Session(session.vae.vae.encoder, saved["vae_policy"])
    session.vae.encoded = _on_host(saved["encoded"])
    for part, count in zip(parts(session), saved["counts"], strict=True):
        for number in range(count):
            step = next(steps)
            part._tiers.settle(number, step, device)
            part._steps.append(step)
    session.refresh_every, session._commits = saved["refresh_every"], saved["commits"]
    session._scheduler, session._control_prompts = saved["scheduler"], saved["control_prompts"]
    session.request = Request(**_on_host(saved["request"]))
    session.trajectory = Trajectory(**saved["trajectory"])
    session._picture = Picture(**saved["picture"])
    if saved["control"] is not None:
        calls, positions, branch, maps = saved["control"]
        session.control = AttentionControl(session.pipe, calls=calls, max_positions=positions, branch=branch)
        session.control._maps = maps
    session.extra = extra["extra"]


def _models(pipe):
    """What tells a pipeline's models from others', but for the U-Net's."""
    names = ("vae", "text_encoder", "text_encoder_2")
    return {name: store.fingerprint(getattr(pipe, name)) for name in names if getattr(pipe, name, None) is not None}


def _on_host(values):
    return tree_map(lambda value: value.cpu() if isinstance(value, torch.Tensor) else value, values)


def _fields(value):
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
