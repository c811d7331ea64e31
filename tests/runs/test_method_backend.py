"""A method may send its kernels to another backend than the run's, so that two are timed in turn in one run."""

import pytest
import runner_fakes as fakes
import torch

from sige.kernels import backends
from sige.runs.errors import UserError
from sige.runs.methods import session
from sige.runs.models.zoo import Zoo

HARDWARE = {"name": "cpu", "device": "cpu", "dtype": "float32"}


def test_an_unknown_backend_is_told():
    with pytest.raises(UserError, match="^unknown kernel backend 'cudnn': choose one of reference, composed, cpu"):
        session.check({"policy": "incremental", "backend": "cudnn"})


@pytest.mark.parametrize("wanted, expected", [("composed", "composed"), (None, "cpu")], ids=["its own", "the run's"])
def test_recording_and_edits_run_on_it(monkeypatch, wanted, expected):
    monkeypatch.delenv("SIGE_BACKEND", raising=False)
    options = {"policy": "incremental", "backend": wanted}
    runner = session.build("it", options, Zoo(fakes.MODEL, "cpu"), HARDWARE)
    seen = []
    runner.module.register_forward_pre_hook(lambda *_: seen.append(backends.active("cpu")))
    picture, mask = torch.zeros(1, 3, fakes.SIZE, fakes.SIZE), torch.zeros(fakes.SIZE, fakes.SIZE, dtype=torch.bool)
    mask[3:6, 3:6] = True
    runner.record((picture,))
    runner.step((picture + mask,), mask)
    assert (seen, backends.active("cpu")) == ([expected] * 2, "cpu")
