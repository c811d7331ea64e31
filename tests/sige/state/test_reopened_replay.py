"""A session that another process saved: its steps are replayed as they would have been there, and give the same bits."""

import json
import os
import subprocess
import sys

import pytest
import torch

import sige

# The whole of it runs in the first process too: Sequential is found by its name in both. ``mode`` of Upsample is a text, whose hash
# differs from process to process.
MODEL = """
import sige, torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1),
    nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(16, 3, 3, padding=1),
).eval()
original, new = torch.randn(2, 1, 3, 32, 32).unbind(0)
mask = torch.zeros(32, 32, dtype=torch.bool)
mask[8:14, 10:20] = True
edited = torch.where(mask, new, original)


def record(**settings):
    session = sige.Session(model, **settings)
    with session.record():
        for _ in range(4):
            model(original)
    return session


def edit(session):
    with session.edit(mask):
        return torch.stack([model(edited) for _ in range(4)])
"""
OTHER = """
import json, sys

session = sige.Session.load(sys.argv[1], model)
torch.save(edit(session), sys.argv[2])
print(json.dumps({"replayed": session.replayed_steps, "calls": [session._steps[0].calls, record()._steps[0].calls]}))
"""


@pytest.fixture(scope="module")
def here():
    """Names of MODEL, run in this process."""
    names = {}
    exec(MODEL, names)
    return names


@pytest.fixture(scope="module")
def there(here, tmp_path_factory):
    """(what another process prints of the saved session, its outputs of an edit, those of this process)."""
    folder = tmp_path_factory.mktemp("saved")
    session = here["record"]()
    session.save(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", MODEL + OTHER, str(folder), str(folder / "outputs")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), torch.load(folder / "outputs"), here["edit"](session)


def test_a_session_reopened_in_another_process_is_replayed(there):
    assert there[0]["replayed"] == 2


def test_a_session_reopened_in_another_process_edits_to_the_same_bits(there):
    assert torch.equal(there[1], there[2])


def test_a_step_recorded_in_another_process_calls_what_the_saved_one_called(there):
    saved, anew = there[0]["calls"]
    assert saved == anew


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(
    "asked, replayed", [(None, {True: 2, False: 0}), (True, {True: 2, False: 2}), (False, {True: 0, False: 0})]
)
def test_a_reopened_session_is_replayed_as_the_saved_one_unless_asked(here, tmp_path, saved, asked, replayed):
    here["record"](replay=saved).save(tmp_path)
    session = sige.Session.load(tmp_path, here["model"], replay=asked)
    here["edit"](session)
    assert session.replayed_steps == replayed[saved]


def test_a_folder_of_an_earlier_release_opens_and_is_not_replayed(here, tmp_path, monkeypatch):
    from sige.state import coding

    session = here["record"]()
    session._settings = lambda kept=session._settings: {
        name: value for name, value in kept().items() if name != "replay"
    }
    with monkeypatch.context() as patch:
        patch.setattr(coding, "_FIELDS", tuple(name for name in coding._FIELDS if name != "calls"))
        session.save(tmp_path)
    loaded = sige.Session.load(tmp_path, here["model"])
    assert (torch.equal(here["edit"](loaded), here["edit"](session)), loaded.replayed_steps) == (True, 0)
