"""Device, pinned memory and disk as tiers: on a GPU where there is one, and the order of copies on stand-ins for streams anywhere."""

import contextlib

import pytest
import torch

import sige
from sige.state import loader
from sige.state.packed import pack
from sige.state.stored import Stored

TIMES = (900, 700, 500, 100)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "host", [pytest.param(None, id="pinned"), pytest.param(1.5, id="pinned-and-disk"), pytest.param(0.5, id="disk")]
)
@pytest.mark.parametrize("dtype", [pytest.param(None, id="whole"), pytest.param(torch.float8_e4m3fn, id="float8")])
def test_edits_on_a_gpu_are_the_same_bits_with_any_budget(unet, small, images, tmp_path, host, dtype):
    model, (x0, x1), mask = (
        type(unet).from_config(unet.config).eval().cuda(),
        (x.cuda() for x in images[:2]),
        images[2].cuda(),
    )
    model.load_state_dict(unet.state_dict())
    policy, results, placed = small("incremental", state_dtype=dtype), [], []
    budget = None
    for _ in range(2):
        session = sige.Session(model, policy, memory_budget=budget, state_folder=tmp_path)
        with torch.no_grad(), session.record():
            for t in TIMES:
                model(x0, t)
        for _ in range(2):
            with torch.no_grad(), session.edit(mask):
                results.append([model(x1, t).sample for t in TIMES])
            session.commit()
        placed.append(session.state_tiers())
        budget = {"device": 2 * session.least_budget}
        if host is not None:
            budget["host"] = int(host * session.least_budget)
    assert all(map(torch.equal, results[0], results[2])) and all(map(torch.equal, results[1], results[3]))
    assert placed[1]["host"] + placed[1]["disk"] > 0 or dtype is not None


class Fake:
    """A stream or an event that writes down what it is told."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.name))

    def record(self, stream):
        self.log.append((self.name, "recorded on", stream.name))

    def query(self):
        return True


@pytest.fixture
def copier(monkeypatch):
    """A CudaCopier on stand-ins, and the log of what its streams and events were told."""
    log, counts = [], iter(range(100))
    main = Fake(log, "main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Fake(log, "copies"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: Fake(log, f"event {next(counts)}"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: main)
    monkeypatch.setattr(loader, "pinned_empty", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return loader.CudaCopier(torch.device("cpu")), log


def maps():
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    packed = pack(rows, torch.float8_e4m3fn)
    return [Stored("kv", rows, None, rows.dtype), Stored("kv", packed.data, packed.scale, packed.dtype)]


@pytest.mark.parametrize("which", [pytest.param(0, id="whole"), pytest.param(1, id="float8")])
@pytest.mark.parametrize("index", [pytest.param(None, id="all"), pytest.param([3, 17, 4], id="rows")])
def test_rows_on_the_device_go_to_their_places(copier, which, index):
    one, buffer = maps()[which], torch.zeros(20, 6)
    rows = None if index is None else torch.tensor(index)
    copier[0].fill(buffer, one, rows, None)
    where = slice(None) if rows is None else rows
    assert torch.equal(buffer[where], one.rows()[where])
    assert buffer.count_nonzero() == one.rows()[where].count_nonzero()


@pytest.mark.parametrize("which", [pytest.param(0, id="whole"), pytest.param(1, id="float8")])
@pytest.mark.parametrize("index", [pytest.param(None, id="all"), pytest.param([3, 17, 4], id="rows")])
def test_rows_in_host_memory_arrive_as_they_are_used(copier, which, index):
    one = maps()[which]
    rows = None if index is None else torch.tensor(index)
    found = one.used(copier[0]._staged_rows(one, rows))
    assert torch.equal(found, one.rows() if rows is None else one.rows()[rows])


def test_a_pinned_buffer_is_used_again_for_rows_of_its_shape(copier):
    one = maps()[0]
    for _ in range(3):
        copier[0]._staged_rows(one, torch.tensor([1, 2]))
    copier[0]._staged_rows(one, torch.tensor([1, 2, 3]))
    assert sorted(len(pinned) for _, pinned in copier[0]._staged) == [2, 3]


def test_copies_wait_for_the_buffer_and_the_model_waits_for_the_copies(copier, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda buffer, stream: None, raising=False)
    one, buffer = maps()[0], torch.empty(20, 6)
    free = copier[0].used()
    copier[0].fill(buffer, one, torch.tensor([1]), free)
    copier[0].wait(copier[0].mark(), buffer)
    told = [entry for entry in copier[1] if entry[0] in ("main", "copies") or entry[2] == "copies"]
    assert told == [
        ("copies", "waits for", "event 0"),
        ("event 1", "recorded on", "copies"),
        ("main", "waits for", "event 1"),
    ]
