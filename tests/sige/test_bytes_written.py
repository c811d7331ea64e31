"""A sparse step leaves no dense traffic: bytes that operators allocate and write in an edit of the church U-Net, over those of
one dense pass.

The full network runs on meta tensors: every operator of PyTorch and of ours reports what it would allocate, inside the edit's
set-up too. What a backend needs within one of our operators (buffers of gathered taps, which stay in the cache) is looked at on a
network of a quarter of the channels, with values.
"""

import collections

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sige
from sige.datasets import registry
from sige.kernels import backends, ops
from sige.kernels.composed import convolution as composed
from sige.kernels.cpu import library

MIB = 1 << 20
MOST = 0.10
# What an operator that writes in place writes: the argument that holds the rows, elsewhere the whole target.
_ROWS = {"scatter_rows_": 2, "exchange_rows_": 2, "index_copy_": 3, "index_put_": 2}


def size(tensor):
    return tensor.numel() * tensor.element_size()


def storage(tensor):
    """What tells a tensor's memory from another's; of oneDNN's packed weights nothing is known but their size."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage()._cdata


class Written(TorchDispatchMode):
    """Bytes written by each operator: new memory behind its results, and what it writes in place. A view writes nothing."""

    def __init__(self):
        super().__init__()
        self.by_operator = collections.Counter()
        self.whole_maps = collections.Counter()  # by (operator, height, width): new maps (B, C, H, W)
        self.in_whole_maps = 0  # bytes
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        held = {storage(tensor) for tensor in given}
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and storage(leaf) not in held]
        written = sum(size(tensor) for tensor in new) + self._in_place(func, name, args)
        self.by_operator[name] += written
        self.largest = max(self.largest, written)
        for tensor in new:
            if tensor.dim() == 4 and tensor.shape[1] > 3:
                self.whole_maps[name, tensor.shape[2], tensor.shape[3]] += 1
                self.in_whole_maps += size(tensor)
        return out

    @staticmethod
    def _in_place(func, name, args):
        targets = [
            arg
            for arg, declared in zip(args, func._schema.arguments)
            if arg is not None and declared.alias_info is not None and declared.alias_info.is_write
        ]
        if not targets:
            return 0
        if name == "index_fill_":
            return args[2].numel() * size(targets[0]) // targets[0].shape[args[1]]
        return args[_ROWS[name]].numel() * targets[0].element_size() if name in _ROWS else sum(map(size, targets))

    @property
    def total(self):
        return sum(self.by_operator.values())


def church(device, narrower=1):
    """The church-256 U-Net of conf/model, its channels divided by ``narrower``."""
    from diffusers import UNet2DModel

    config = OmegaConf.to_container(OmegaConf.load(sige.paths.conf_dir() / "model" / "ddpm_church256.yaml"))["config"]
    config["block_out_channels"] = [width // narrower for width in config["block_out_channels"]]
    config["norm_num_groups"] //= narrower
    torch.manual_seed(0)
    with torch.device(device):
        return UNet2DModel(**config).eval().requires_grad_(False).to(memory_format=torch.channels_last)


class Counted:
    """One dense pass, a recording and two edits of one mask: ``first`` sets it up, ``again`` finds it so, ``undone`` undoes."""

    def __init__(self, policy, edit, device, narrower=1):
        model, edit = church(device, narrower), registry.load(edit)
        original, edited = (image[None].to(device) for image in (edit.original, edit.edited))
        step = torch.tensor([500], device=device)
        session = sige.Session(model, policy=policy)
        self.dense, self.first, self.undone, self.again = (Written() for _ in range(4))
        with torch.no_grad():
            with self.dense:
                model(original, step)
            with session.record():
                model(original, step)
            for counter in (self.first, self.again):
                with counter, session.edit(edit.mask):
                    model(edited, step)
                if counter is self.first:
                    with self.undone:
                        session.undo()

    def share(self, name):
        return getattr(self, name).total / self.dense.total


COUNTS = {
    "brush": ("incremental", "brush-1.2"),
    "rectangle": ("incremental", "rectangle-1.2"),
    "sige": ("sige", "brush-1.2"),
}


@pytest.fixture(scope="module")
def counted():
    """``counted(name)``: the counts of one of COUNTS on meta tensors, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Counted(*COUNTS[name], "meta")
        return made[name]

    return get


def test_activations_of_one_dense_pass(counted):
    assert counted("brush").dense.total / MIB == pytest.approx(3062, abs=15)


@pytest.mark.parametrize("which", ["first", "again"])
@pytest.mark.parametrize("edit", ["brush", "rectangle"])
def test_an_edit_writes_a_tenth_of_a_dense_pass_at_most(counted, edit, which):
    assert counted(edit).share(which) <= MOST


def test_undoing_writes_the_overwritten_rows_alone(counted):
    count = counted("brush")
    assert count.undone.total == count.undone.by_operator["scatter_rows_"] <= 0.02 * count.dense.total


def test_no_whole_map_above_the_levels_that_run_dense(counted):
    finest = max((height for _, height, _ in counted("brush").again.whole_maps), default=0)
    assert finest <= 16


def test_the_papers_policy_writes_whole_maps_only_where_it_is_dense(counted):
    # The picture's first convolution, its last norm and activation, and what enters the level of 64 from the dense one below: what
    # the paper keeps dense.
    whole = {name: count for (name, height, _), count in counted("sige").again.whole_maps.items() if height >= 64}
    assert whole == {"conv_map": 1, "normalize_map": 2, "upsample_nearest2d": 1}


def test_the_papers_policy_beside_the_maps_of_its_dense_levels(counted):
    count = counted("sige")
    assert (count.again.total - count.again.in_whole_maps) / count.dense.total <= MOST


@pytest.fixture(scope="module")
def on_values():
    """``on_values(backend)``: the counts inside a backend for CPUs, made once. Nobody listens, so that operators hand over to it before
    they reach the dispatcher."""
    made = {}

    def get(backend):
        if backend not in made:
            with pytest.MonkeyPatch.context() as patch, backends.forced(backend):
                patch.setattr(ops, "_listening", lambda: 0)
                made[backend] = Counted("incremental", "brush-1.2", "cpu", narrower=4)
        return made[backend]

    return get


def test_buffers_of_gathered_taps_stay_in_the_cache(on_values):
    whole = 32 * 256 * 256 * 4
    assert on_values("composed").again.largest <= min(composed.ONE_CHUNK_BYTES, whole)


def test_composed_products_write_a_tenth_beside_their_gathered_taps(on_values):
    counts = on_values("composed")
    taps = counts.again.by_operator["index_select"]
    assert (counts.again.total - taps) / counts.dense.total <= MOST + 0.02


@pytest.mark.skipif(library.library() is None, reason="the compiled kernels cannot be built here")
def test_compiled_products_gather_no_taps(on_values):
    counts = on_values("cpu")
    assert counts.again.total / counts.dense.total <= MOST + 0.02
