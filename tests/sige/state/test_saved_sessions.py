"""A session saved in a folder: what comes back, and what a full disk, a crash, a truncated or an altered file do."""

import errno
import json

import pytest
import safetensors.torch
import torch
from torch import nn

import sige
from sige.errors import RecordingError, StorageError
from sige.state import files, folder


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="incremental"),
        pytest.param({"state_dtype": torch.bfloat16}, id="bfloat16"),
        pytest.param({"norm": "cached", "kv": "reprojected", "geometry": "window", "block": 4}, id="window"),
    ],
)
def test_a_loaded_session_edits_to_the_same_bits(recorded, edit, unet, tmp_path, changes):
    session = recorded(**changes)
    session.save(tmp_path)
    assert all(map(torch.equal, edit(sige.Session.load(tmp_path, unet)), edit(session)))


def test_a_loaded_session_remembers_the_same_bytes_by_kind(recorded, unet, tmp_path):
    session = recorded()
    session.save(tmp_path)
    assert sige.Session.load(tmp_path, unet).state_bytes() == session.state_bytes()


def test_a_loaded_session_has_the_policy_it_was_saved_with(recorded, unet, tmp_path):
    session = recorded(block=(8, 4), state_dtype=torch.float16)
    session.save(tmp_path)
    assert sige.Session.load(tmp_path, unet).policy == session.policy


def test_edits_of_a_loaded_session_leave_its_files_alone(recorded, edit, unet, tmp_path):
    recorded().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded = sige.Session.load(tmp_path, unet)
    edit(loaded)
    loaded.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_committed_edit_is_what_is_saved(recorded, edit, unet, images, tmp_path):
    session = recorded()
    edit(session)
    session.commit()
    session.save(tmp_path)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[2:9, 2:9] = True
    again = torch.where(mask, -images[1], images[1])
    loaded = sige.Session.load(tmp_path, unet)
    assert all(map(torch.equal, edit(loaded, again, mask), edit(session, again, mask)))


def test_what_the_caller_adds_comes_back(recorded, unet, tmp_path):
    session = recorded()
    session.save(tmp_path, {"prompt": "a cat", "latents": [torch.arange(4), 0.5, None], ("t", 1): (True,)})
    extra = sige.Session.load(tmp_path, unet).extra
    assert torch.equal(extra["latents"][0], torch.arange(4))
    assert (extra["prompt"], extra["latents"][1:], extra["t", 1]) == ("a cat", [0.5, None], (True,))


def test_steps_share_on_disk_what_they_share_in_memory(tmp_path):
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.text = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 8)
            self.second = nn.Conv2d(8, 3, 3, padding=1)

        def forward(self, x, text):
            return self.second(self.first(x) + self.text(text)[:, :, None, None])

    model, x, text = Conditioned().eval(), torch.randn(1, 3, 32, 32), torch.randn(1, 4)
    session = sige.Session(model)
    with torch.no_grad(), session.record():
        model(x, text), model(x, text)
    session.save(tmp_path)
    loaded = sige.Session.load(tmp_path, model)
    values = [next(e.value for e in step.entries.values() if e.kind == "conditioning") for step in loaded._steps]
    assert values[0] is values[1]


def test_a_step_is_a_safetensors_file(recorded, tmp_path):
    session = recorded()
    session.save(tmp_path)
    tensors = safetensors.torch.load_file(next(tmp_path.glob("step-0001-*")))
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert 0.9 < 4 * stored / sum(session.state_bytes().values()) < 1.1


@pytest.mark.parametrize(
    "cut", [pytest.param(3, id="header"), pytest.param(5000, id="names"), pytest.param(-1, id="byte")]
)
def test_a_truncated_file_is_named(recorded, unet, tmp_path, cut):
    recorded().save(tmp_path)
    path = next(tmp_path.glob("step-0001-*"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=rf"{path.name} is truncated: it has \d+ bytes, \d+ were saved"):
        sige.Session.load(tmp_path, unet)


def test_an_altered_file_is_named(recorded, unet, tmp_path):
    recorded().save(tmp_path)
    path = next(tmp_path.glob("step-0002-*"))
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=f"{path.name} was altered"):
        sige.Session.load(tmp_path, unet)


def test_a_missing_file_is_named(recorded, unet, tmp_path):
    recorded().save(tmp_path)
    path = next(tmp_path.glob("common-*"))
    path.unlink()
    with pytest.raises(StorageError, match=f"{path.name} is missing"):
        sige.Session.load(tmp_path, unet)


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param({"version": 9}, "version 9, this release reads 'sige session' version 2", id="version"),
        pytest.param({"format": "other"}, "is of 'other' version 2", id="format"),
        pytest.param({"parts": []}, "was altered: its digest", id="altered"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(recorded, unet, tmp_path, change, said):
    recorded().save(tmp_path)
    path = tmp_path / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StorageError, match=said):
        sige.Session.load(tmp_path, unet)


def test_a_truncated_manifest_is_refused(recorded, unet, tmp_path):
    recorded().save(tmp_path)
    path = tmp_path / "session.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(StorageError, match="session.json is truncated or was altered"):
        sige.Session.load(tmp_path, unet)


def test_a_folder_without_a_session_is_refused(unet, tmp_path):
    with pytest.raises(StorageError, match="holds no saved session: there is no session.json"):
        sige.Session.load(tmp_path, unet)


def test_another_model_is_refused(recorded, unet, tmp_path):
    recorded().save(tmp_path)
    other = type(unet).from_config(unet.config).eval()
    with pytest.raises(StorageError, match="was recorded with the model UNet2DModel .*, this one is UNet2DModel"):
        sige.Session.load(tmp_path, other)


@pytest.fixture
def full_disk(monkeypatch):
    """``full_disk(n)``: from the n-th write on the disk is full."""

    def fill(left):
        def write(file, piece, keep=files._write):
            nonlocal left
            left -= 1
            if left < 0:
                file.write(piece[: len(piece) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            keep(file, piece)

        monkeypatch.setattr(files, "_write", write)

    return fill


@pytest.mark.parametrize("writes", [pytest.param(0, id="at-once"), pytest.param(20, id="half-way")])
def test_a_full_disk_leaves_the_earlier_session_whole(recorded, edit, unet, tmp_path, full_disk, writes):
    session = recorded()
    session.save(tmp_path)
    expected = edit(session)
    session.commit()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk(writes)
    with pytest.raises(StorageError, match="could not be written .No space left on device.: free some disk space"):
        session.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all(map(torch.equal, edit(sige.Session.load(tmp_path, unet)), expected))


def test_a_crash_before_the_manifest_moves_leaves_the_earlier_session(recorded, unet, tmp_path, monkeypatch):
    session = recorded()
    session.save(tmp_path, "first")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_put_manifest", crash)
    with pytest.raises(KeyboardInterrupt):
        session.save(tmp_path, "second")
    assert sige.Session.load(tmp_path, unet).extra == "first"


def test_a_second_save_leaves_no_file_of_the_first(recorded, unet, tmp_path):
    session = recorded()
    session.save(tmp_path, "first")
    session.save(tmp_path, "second")
    named = set(folder.manifest_of(tmp_path)["files"]) | {"session.json"}
    assert {path.name for path in tmp_path.iterdir()} == named
    assert sige.Session.load(tmp_path, unet).extra == "second"


def test_nothing_recorded_cannot_be_saved(unet, tmp_path):
    with pytest.raises(RecordingError, match="nothing is recorded yet: .* before saving"):
        sige.Session(unet).save(tmp_path)


def test_an_open_edit_cannot_be_saved(recorded, edit, tmp_path):
    session = recorded()
    edit(session)
    with pytest.raises(RecordingError, match="neither committed nor taken back: commit.. or undo.. before saving"):
        session.save(tmp_path)


def test_what_cannot_be_stored_is_named(recorded, tmp_path):
    with pytest.raises(StorageError, match="extra is a object, which cannot be stored"):
        recorded().save(tmp_path, object())


def test_a_dtype_that_the_format_lacks_is_named(tmp_path):
    with pytest.raises(StorageError, match="a tensor of torch.complex128 cannot be stored"):
        files.write_tensors(tmp_path / "x", {"x": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_no_file_of_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((16).to_bytes(8, "little") + b"not a header ...")
    with pytest.raises(StorageError, match="x.safetensors was altered or is no file of tensors"):
        files.map_tensors(path)


def test_tensors_of_every_dtype_come_back(tmp_path):
    given = {str(dtype): torch.arange(7).to(dtype) for dtype in files._NAMES}
    given |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "strided": torch.arange(6).view(2, 3).t()}
    files.write_tensors(tmp_path / "x", given, "a note")
    found, note = files.map_tensors(tmp_path / "x")
    same = {name: torch.equal(found[name].cfloat(), tensor.cfloat()) for name, tensor in given.items()}
    assert (note, all(same.values()), [found[n].dtype for n in given]) == (
        "a note",
        True,
        [t.dtype for t in given.values()],
    )
