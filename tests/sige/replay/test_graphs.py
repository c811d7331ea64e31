"""Steps captured once and replayed under other masks and inputs: the bits, the state and the undo of steps that were not.

A stand-in for CUDA's capture keeps to its rules on the CPU, see capturing.py; on a machine with a GPU the last test uses CUDA's own.
"""

import copy
import dataclasses

import pytest
import torch
from capturing import Capture
from pretended import gpu

import sige
from sige.kernels import backends
from sige.replay.graphs import Graphs

TIMES = [torch.tensor(time) for time in (700, 500)]
POLICIES = ["incremental", "sige", "fisedit", "fisedit_radical"]


@pytest.fixture(autouse=True)
def fixed_shapes():
    """The kernels of `reference`, none of which makes a tensor whose shape depends on row numbers, as those of the CPU do."""
    if torch.cuda.is_available():
        yield
    else:
        with backends.forced("reference"):
            yield


def rectangles(*places):
    """Mask (B, 64, 64): one rectangle (top, left, height, width) a sample."""
    mask = torch.zeros(len(places), 64, 64, dtype=torch.bool)
    for sample, (top, left, height, width) in enumerate(places):
        mask[sample, top : top + height, left : left + width] = True
    return mask


MASKS = [rectangles((20 + 16 * (i % 2), 20 + 16 * (i // 2 % 2), 8, 8)) for i in range(6)]
CROSSED = [
    rectangles((20, 20, 8, 8), (20, 36, 8, 8)),
    rectangles((36, 36, 8, 8), (36, 20, 8, 8)),
    rectangles((20, 36, 8, 8), (20, 20, 8, 8)),
    rectangles((36, 20, 8, 8), (36, 36, 8, 8)),
]


def session_of(model, policy, captured, batch=1, device="cpu"):
    """A session with two recorded steps, and its picture; ``captured``: with the stand-in for graphs."""
    session = sige.Session(model, policy)
    if captured:
        session._replay.graphs = Graphs(Capture())
    x = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with session.record():
        for time in TIMES:
            model(x, time.to(device))
    return session, x


def edit(session, x, mask, seed):
    """Outputs of an edit of both steps, its inputs drawn anew from ``seed``."""
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    with session.edit(mask.to(x.device)) as effect:
        found = [
            session.model(torch.where(mask[:, None].to(x.device), other, x), time.to(x.device)).sample for time in TIMES
        ]
    return [*found, effect.active]


def maps(session):
    return [tensor.clone() for step in session._steps for entry in step.entries.values() for tensor in entry.tensors()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("masks", [pytest.param(MASKS, id="one sample"), pytest.param(CROSSED, id="two samples")])
@pytest.mark.parametrize("name", POLICIES)
def test_one_capture_serves_every_mask_of_its_shape(unet, small, name, masks):
    results = []
    for captured in (False, True):
        session, x = session_of(unet, small(name), captured, len(masks[0]))
        results.append([part for seed, mask in enumerate(masks) for part in edit(session, x, mask, seed)])
    graphs = session._replay.graphs
    assert (graphs._capture.count, session.graph_steps) == (2, 2 * (len(masks) - 2))
    assert same(*results)


@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_undo_after_graphs_gives_the_recording_back(unet, small, name):
    session, x = session_of(unet, small(name), True)
    before = maps(session)
    for seed, mask in enumerate(MASKS):
        edit(session, x, mask, seed)
    session.undo()
    assert (session.graph_steps > 0, same(before, maps(session))) == (True, True)


@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_edits_committed_one_after_the_other(unet, small, name):
    results = []
    for captured in (False, True):
        session, x = session_of(unet, small(name), captured)
        for seed, mask in enumerate(MASKS):
            found = edit(session, x, mask, seed)
            session.commit()
            other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            x = torch.where(mask[:, None], other, x)
        results.append([*found, *maps(session)])
    assert (session.graph_steps > 0, same(*results)) == (True, True)


def test_masks_in_one_bucket_share_a_capture(unet, small):
    masks = [rectangles(place) for place in [(17, 29, 12, 12), (23, 14, 11, 13), (30, 35, 8, 9), (25, 31, 10, 6)]]
    session, x = session_of(unet, small("incremental", bucket=2.0), True)
    for seed, mask in enumerate(masks):
        edit(session, x, mask, seed)
    assert (session._replay.graphs._capture.count, session.graph_steps) == (2, 4)


def test_an_output_handed_out_is_not_written_to_again(unet, small):
    session, x = session_of(unet, small("incremental"), True)
    for seed, mask in enumerate(MASKS[:4]):
        found = edit(session, x, mask, seed)
    kept = copy.deepcopy(found)
    edit(session, x, MASKS[4], 9)
    assert same(found, kept)


def test_state_that_was_recorded_anew_is_captured_anew(unet, small):
    session, x = session_of(unet, small("incremental"), True)
    for seed, mask in enumerate(MASKS[:4]):
        edit(session, x, mask, seed)
    with session.record():
        for time in TIMES:
            unet(-x, time)
    found = [edit(session, -x, mask, 5) for mask in MASKS[:3]][-1]
    plain, _ = session_of(unet, small("incremental"), False)
    with plain.record():
        for time in TIMES:
            unet(-x, time)
    assert (session._replay.graphs._capture.count, same(found, edit(plain, -x, MASKS[2], 5))) == (4, True)


def test_what_cannot_be_captured_is_said_and_replayed_without(unet, small):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    session, x = session_of(unet, small("incremental"), False)
    session._replay.graphs = Graphs(refuse)
    plain, _ = session_of(unet, small("incremental"), False)
    edit(session, x, MASKS[0], 0)
    edit(session, x, MASKS[1], 1)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        found = edit(session, x, MASKS[2], 2)
    assert (session.graph_steps, same(found, edit(plain, x, MASKS[2], 2))) == (0, True)


@pytest.mark.parametrize("name", ["incremental", "fisedit"])
def test_nothing_that_is_captured_waits_for_the_gpu(unet, small, name):
    """CUDA refuses to capture what does. The GPU is not there, see tests/pretended.py."""
    plain, x = session_of(unet, small(name), False)
    exact = [edit(plain, x, mask, seed) for seed, mask in enumerate(MASKS[:4])][-1]
    with gpu("reference") as waits:
        waited = []

        def capture(run, capture=Capture()):
            before = len(waits)
            captured = capture(run)
            waited.append(waits[before:])
            return captured

        session, x = session_of(copy.deepcopy(unet).cuda(), small(name), False, device="cuda")
        session._replay.graphs = Graphs(capture)
        *found, _ = [edit(session, x, mask, seed) for seed, mask in enumerate(MASKS[:4])][-1]
        got = [output.cpu() for output in found]
    assert (waited, session.graph_steps, same(got, exact[:2])) == ([[], []], 4, True)


def test_on_a_cpu_there_are_no_graphs(unet):
    with pytest.raises(sige.errors.ModelError, match="needs a model on an NVIDIA GPU, this one is on cpu"):
        sige.Session(unet, cuda_graphs=True)


def test_a_reopened_session_may_have_graphs_too(unet, small, tmp_path):
    session, _ = session_of(unet, small("incremental"), False)
    session.save(tmp_path / "saved")
    with pytest.raises(sige.errors.ModelError, match="needs a model on an NVIDIA GPU"):
        sige.Session.load(tmp_path / "saved", unet, cuda_graphs=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("name", POLICIES)
def test_cuda_graphs_give_what_kernels_one_by_one_give(unet, small, name):
    policy, results = dataclasses.replace(small(name)), []
    model = copy.deepcopy(unet).cuda()
    for graphs in (False, True):
        session, x = session_of(model, policy, False, device="cuda")
        session._replay.graphs = sige.Session(model, policy, cuda_graphs=True)._replay.graphs if graphs else None
        results.append([part for seed, mask in enumerate(MASKS) for part in edit(session, x, mask, seed)])
    assert (session.graph_steps, same(*results)) == (8, True)
