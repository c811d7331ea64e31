"""Steps beyond the memory budget: the same bits, files that come and go, what a full disk does."""

import errno

import pytest
import torch

import sige
from sige.errors import BudgetError, PathError, StorageError
from sige.state import files, loader, tiers

TIMES = (900, 700, 500, 100)

# As shares of the bytes of one step's maps: room for one step in use, for two, for two and one that stays, for everything.
BUDGETS = [
    pytest.param(1.0, id="one-step"),
    pytest.param(2.0, id="two-steps"),
    pytest.param(3.5, id="one-stays"),
    pytest.param(99.0, id="all-stay"),
]


@pytest.fixture(scope="module")
def sizes():
    """Bytes of one step's maps in use, by dials."""
    return {}


@pytest.fixture
def step_bytes(recorded, sizes):
    """``step_bytes(**changes)``: bytes of the maps that one step of the recording uses."""

    def measure(**changes):
        name = str(sorted(changes.items(), key=str))
        if name not in sizes:
            sizes[name] = tiers.working_bytes(recorded(**changes)._steps[0])
        return sizes[name]

    return measure


@pytest.fixture
def tiered(recorded, step_bytes, tmp_path):
    """``tiered(share, **changes)``: a recording of four steps with a budget of ``share`` steps, its files under ``tmp_path``."""

    def make(share, folder=tmp_path, **changes):
        budget = int(step_bytes(**changes) * share)
        return recorded({"memory_budget": budget, "state_folder": folder}, **changes)

    return make


@pytest.fixture
def poisoned(monkeypatch):
    """Buffers hold NaN where nothing was loaded."""
    take = loader.Buffers.take

    def poison(self, shape, dtype, device):
        buffer, event = take(self, shape, dtype, device)
        return buffer.fill_(float("nan")), event

    monkeypatch.setattr(loader.Buffers, "take", poison)


def test_the_budget_says_what_lies_where(tiered, recorded, step_bytes):
    placed = {share: tiered(share).state_tiers() for share in (1, 3.5, 99)}
    total = sum(recorded().state_bytes().values())
    assert [placed[share]["disk"] for share in (1, 3.5, 99)] == [4 * step_bytes(), 3 * step_bytes(), 0]
    assert {sum(tiers.values()) for tiers in placed.values()} == {total}


@pytest.mark.parametrize("share", BUDGETS)
def test_edits_are_the_same_bits_with_any_budget(tiered, recorded, edit, poisoned, share):
    session = tiered(share)
    assert all(map(torch.equal, edit(session), edit(recorded())))


@pytest.mark.parametrize(
    "policy, changes",
    [
        pytest.param("incremental", {"state_dtype": torch.bfloat16}, id="bfloat16"),
        pytest.param("incremental", {"state_dtype": torch.float8_e4m3fn}, id="float8"),
        pytest.param("incremental", {"kv": "reprojected"}, id="reprojected"),
        pytest.param("incremental", {"merge_rate": 0.5}, id="merged"),
        pytest.param("incremental", {"merge_rate": 0.5, "state_dtype": torch.float8_e4m3fn}, id="merged-float8"),
        pytest.param("sige", {}, id="sige"),
        pytest.param("sige_public", {}, id="sige_public"),
        pytest.param("pixel", {}, id="pixel"),
        pytest.param("fisedit", {}, id="fisedit"),
        pytest.param("fisedit_radical", {}, id="fisedit_radical"),
    ],
)
def test_every_policy_reads_what_it_needs(tiered, recorded, edit, poisoned, policy, changes):
    results = []
    for session in (tiered(1, policy=policy, **changes), recorded(policy=policy, **changes)):
        edit(session)
        session.commit()
        results.append(edit(session))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("share", BUDGETS[:3])
def test_an_edit_builds_on_a_committed_one(tiered, recorded, edit, poisoned, images, share):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[30:50, 5:30] = True
    results = []
    for session in (tiered(share), recorded()):
        edit(session)
        session.commit()
        results.append(edit(session, torch.where(mask, -images[1], images[1]), mask))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("share", BUDGETS[:3])
def test_undo_leaves_the_stored_steps_as_they_were(tiered, edit, tmp_path, share):
    session = tiered(share)
    before = {path: path.read_bytes() for path in tmp_path.rglob("step-*")}
    first = edit(session)
    untouched = all(path.read_bytes() == data for path, data in before.items())
    session.undo()
    assert untouched and not list(tmp_path.rglob("edit-*"))
    assert all(map(torch.equal, edit(session), first))


def test_a_full_edit_commits_to_the_tier_of_its_step(tiered, recorded, edit, images):
    everything = torch.ones(64, 64, dtype=torch.bool)
    results, places = [], []
    for session in (tiered(1), recorded()):
        edit(session, -images[0], everything)
        session.commit()
        mask = images[2]
        results.append(edit(session, torch.where(mask, images[1], -images[0]), mask))
        places.append(session.state_tiers())
    assert all(map(torch.equal, *results))
    assert places[0]["disk"] > 0


def test_dense_steps_and_a_later_start_leave_the_others_on_their_way(tiered, recorded, unet, images):
    results = []
    for session in (tiered(2), recorded()):
        with torch.no_grad(), session.edit(images[2], start=1, dense=(2,)):
            results.append([unet(images[1], t).sample for t in (700, 500, 100)])
    assert all(map(torch.equal, *results))


def test_without_prefetch_the_bits_are_the_same(tiered, edit):
    session = tiered(2)
    expected = edit(session)
    session.prefetch = False
    session.undo()
    assert all(map(torch.equal, edit(session), expected))


def test_a_session_without_prefetch_stays_so_when_it_records_anew(tiered, unet, images):
    session = tiered(2)
    session.prefetch = False
    with torch.no_grad(), session.record():
        unet(images[0], 500)
    assert session.prefetch is False


def test_without_prefetch_every_load_is_waited_for(tiered, edit):
    session = tiered(2)
    session.prefetch = False
    before = session.waited
    edit(session)
    assert (before, session.waited > 0) == (0, True)


def test_a_session_whose_maps_are_at_hand_waits_for_nothing(recorded, edit):
    session = recorded()
    edit(session)
    assert session.waited == 0


def test_buffers_are_made_for_two_steps_and_used_for_all(tiered, edit, step_bytes):
    session = tiered(2)
    edit(session), edit(session)
    assert session._tiers._loader.buffers.made == 2 * step_bytes()


def test_less_travels_than_lies_there(tiered, edit, step_bytes):
    session = tiered(2)
    edit(session)
    assert 0 < session._tiers.loaded < 0.5 * 4 * step_bytes()


def test_a_failed_edit_leaves_nothing_behind(tiered, edit, unet, images, tmp_path):
    session = tiered(2)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), session.edit(images[2]):
        unet(images[1], 900)
        raise ZeroDivisionError
    assert not list(tmp_path.rglob("edit-*"))
    assert all(map(torch.equal, edit(session), edit(tiered(2))))


def test_a_forward_that_leaves_the_path_gives_its_buffers_back(tiered, edit, unet, images):
    session = tiered(2)
    conv, forward = unet.conv_out, unet.conv_out.forward
    conv.forward = lambda x: forward(torch.nn.functional.conv2d(x, torch.ones(8, 1, 3, 3), padding=1, groups=8))
    try:
        with pytest.raises(PathError), torch.no_grad(), session.edit(images[2]):
            unet(images[1], 900)
    finally:
        del conv.forward
    assert all(map(torch.equal, edit(session), edit(tiered(2))))


def test_close_removes_the_files(tiered, edit, tmp_path):
    session = tiered(1)
    edit(session)
    session.close()
    assert not list(tmp_path.iterdir())


def test_a_new_recording_removes_the_files_of_the_one_before(tiered, unet, images, tmp_path):
    session = tiered(1)
    with torch.no_grad(), session.record():
        unet(images[0], 500), unet(images[0], 400)
    assert sorted(path.name[:9] for path in tmp_path.rglob("step-*")) == ["step-0000", "step-0001"]


def test_a_session_beyond_the_budget_is_saved_and_loaded(tiered, recorded, edit, unet, step_bytes, tmp_path):
    session = tiered(1, folder=tmp_path / "tier")
    session.save(tmp_path / "saved")
    loaded = sige.Session.load(tmp_path / "saved", unet, int(3.5 * step_bytes()), tmp_path / "other")
    assert all(map(torch.equal, edit(loaded), edit(recorded())))
    assert loaded.state_tiers() == tiered(3.5, folder=tmp_path / "third").state_tiers()


def test_a_budget_for_less_than_a_step_names_both_sizes(recorded, step_bytes):
    with pytest.raises(
        BudgetError, match=rf"memory_budget=1000 bytes does not hold one step: .* take {step_bytes()} bytes"
    ):
        recorded({"memory_budget": 1000})


@pytest.mark.parametrize(
    "budget", [pytest.param(0, id="zero"), pytest.param("4 GB", id="text"), pytest.param({"tape": 5}, id="tier")]
)
def test_a_budget_must_be_bytes(unet, budget):
    with pytest.raises(BudgetError, match="must be a number of bytes above 0, or such numbers by tier"):
        sige.Session(unet, memory_budget=budget)


def test_a_folder_that_cannot_be_made_is_named(tiered, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="state_folder .*file cannot be used"):
        tiered(1, folder=tmp_path / "file")


@pytest.fixture
def full_disk(monkeypatch):
    """``full_disk()``: from now on nothing more can be written."""

    def write(file, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(files, "_write", write)


def test_a_disk_that_fills_up_takes_the_edit_back(tiered, edit, recorded, full_disk, monkeypatch):
    session, keep = tiered(1), files._write
    full_disk()
    with pytest.raises(StorageError, match="could not be written .No space left on device."):
        edit(session)
    monkeypatch.setattr(files, "_write", keep)
    assert all(map(torch.equal, edit(session), edit(recorded())))


def test_a_disk_that_is_full_at_a_commit_changes_nothing(
    tiered, recorded, edit, images, tmp_path, full_disk, monkeypatch
):
    session, keep, everything = tiered(1), files._write, torch.ones(64, 64, dtype=torch.bool)
    edit(session, -images[0], everything)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    full_disk()
    with pytest.raises(StorageError, match="No space left on device"):
        session.commit()
    monkeypatch.setattr(files, "_write", keep)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    session.undo()
    assert all(map(torch.equal, edit(session), edit(recorded())))


@pytest.mark.parametrize("share", BUDGETS[:2])
@pytest.mark.parametrize("dtype", [pytest.param(None, id="whole"), pytest.param(torch.float8_e4m3fn, id="float8")])
def test_inference_mode_changes_nothing(unet, recorded, edit, images, step_bytes, tmp_path, share, dtype):
    budget = int(step_bytes(state_dtype=dtype) * share)
    session = sige.Session(unet, recorded(state_dtype=dtype).policy, memory_budget=budget, state_folder=tmp_path)
    with torch.inference_mode(), session.record():
        for t in TIMES:
            unet(images[0], t)
    with torch.inference_mode(), session.edit(images[2]):
        found = [unet(images[1], t).sample for t in TIMES]
    session.commit()
    plain = recorded(state_dtype=dtype)
    assert all(map(torch.equal, found, edit(plain)))
    plain.commit()
    assert all(map(torch.equal, edit(session), edit(plain)))


def test_a_disk_that_is_full_while_recording_keeps_the_recording_before(
    tiered, edit, unet, images, full_disk, monkeypatch
):
    session, keep = tiered(1), files._write
    expected = edit(session)
    session.undo()
    full_disk()
    with pytest.raises(StorageError, match="No space left on device"), torch.no_grad(), session.record():
        unet(images[1], 500), unet(images[1], 400)
    monkeypatch.setattr(files, "_write", keep)
    assert all(map(torch.equal, edit(session), expected))
