"""Attention control: maps recorded aside, put back for words that stay, in plain, recorded and sparse calls alike."""

import contextlib

import pytest
import torch

import sige
from sige.errors import ChangedInputError, ModelError, PromptError, RecordingError
from sige.pipelines.attention_control import AttentionControl
from sige.pipelines.attention_maps import Carry, put_back_outside
from sige.pipelines.prompts import PromptChange

TOKENS, WIDTH, SIDE = 6, 16, 16
CALLS = (900, 500)


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
    ).eval()
    for name, parameter in model.named_parameters():  # sharper attention, so that a prompt makes a visible difference
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.data *= 4
    return model


def noise(seed, batch=2):
    return torch.randn(batch, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def text(seed, batch=2):
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(100 + seed))


X, OLD, NEW = noise(0), text(0), text(1)


def run(unet, encoding, x=X, calls=CALLS):
    with torch.no_grad():
        return [unet(x, t, encoder_hidden_states=encoding).sample for t in calls]


def change(mapping, spans=(), weights=None, kind="swap"):
    return PromptChange(kind, tuple(mapping), tuple(spans), weights)


EVERY = change(range(TOKENS))
NONE = change([None] * TOKENS)
SWAP = change([0, 1, None, 3, 4, 5], [(2, 3, 2, 3)])


@pytest.fixture(scope="module")
def recorded(unet):
    control = AttentionControl(unet)
    with control.recording():
        run(unet, OLD)
    return control


class Slow:
    """An attention processor that does it the plain way, with its own maps: record, then replace columns."""

    def __init__(self):
        self.maps, self.columns, self.factors, self.swap = [], None, None, {}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        batch, heads = hidden_states.shape[0], attn.heads
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k, v = (x.view(batch, -1, heads, x.shape[-1] // heads).transpose(1, 2).double() for x in (q, k, v))
        shares = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        if self.columns is None:
            self.maps.append(shares[batch // 2 :])
        else:
            base = self.maps.pop(0)
            for new, old in enumerate(self.columns):
                if old is not None:
                    shares[batch // 2 :, :, :, new] = base[..., old]
            for new, terms in self.swap.items():
                shares[batch // 2 :, :, :, new] = sum(base[..., old] * share for old, share in terms)
            if self.factors:
                shares[batch // 2 :] *= torch.tensor(self.factors).double()
        out = (shares @ v).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[0](out)


@contextlib.contextmanager
def slow_processors(unet, slow):
    before = {name: module.processor for name, module in unet.named_modules() if name.endswith("attn2")}
    for name in before:
        unet.get_submodule(name).set_processor(slow)
    try:
        yield
    finally:
        for name, processor in before.items():
            unet.get_submodule(name).set_processor(processor)


def by_hand(unet, mapping, factors=None, swap=None, old=OLD, new=NEW, x=X):
    slow = Slow()
    with slow_processors(unet, slow):
        run(unet, old, x)
        slow.columns, slow.factors, slow.swap = mapping, factors, swap or {}
        return run(unet, new, x)


def far(made, expected):
    return max(
        ((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(made, expected, strict=True)
    )


# -- what it computes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mapping",
    [
        pytest.param([0, 1, None, 3, 4, 5], id="swap"),
        pytest.param([0, 1, None, None, 2, 5], id="addition"),
        pytest.param([0, 3, 4, 5, None, 5], id="removal"),
        pytest.param([None] * TOKENS, id="nothing in common"),
    ],
)
def test_columns_of_unchanged_tokens_come_from_the_old_prompt(unet, recorded, mapping):
    with recorded.injecting(change(mapping)):
        made = run(unet, NEW)
    assert far(made, by_hand(unet, mapping)) < 2e-4


def test_control_makes_a_difference(unet, recorded):
    with recorded.injecting(EVERY):
        made = run(unet, NEW)
    assert far(made, run(unet, NEW)) > 1e-2


def test_control_holds_the_picture_closer_to_the_old_one(unet, recorded):
    with recorded.injecting(EVERY):
        made = run(unet, NEW)
    assert far(made, run(unet, OLD)) < far(run(unet, NEW), run(unet, OLD))


def test_the_same_prompt_gives_the_same_result(unet, recorded):
    with recorded.injecting(EVERY):
        made = run(unet, OLD)
    assert far(made, run(unet, OLD)) < 2e-4


def test_the_unconditional_half_is_left_alone(unet, recorded):
    with recorded.injecting(EVERY):
        made = run(unet, NEW)
    assert all(torch.equal(a[:1], b[:1]) for a, b in zip(made, run(unet, NEW), strict=True))


def test_the_first_branch_can_be_the_one_that_reads_the_prompt(unet):
    control = AttentionControl(unet, branch=0)
    with control.recording():
        run(unet, OLD)
    with control.injecting(EVERY):
        made = run(unet, NEW)
    changed = [(a - b).abs().amax((1, 2, 3)) > 0 for a, b in zip(made, run(unet, NEW), strict=True)]
    assert [part.tolist() for part in changed] == [[True, False]] * len(CALLS)


@pytest.mark.parametrize(
    "spans, swap",
    [
        pytest.param([(2, 3, 2, 3)], {2: [(2, 1.0)]}, id="token for token"),
        pytest.param([(2, 3, 2, 4)], {2: [(2, 0.5)], 3: [(2, 0.5)]}, id="two share what one held"),
        pytest.param([(2, 4, 2, 3)], {2: [(2, 1.0), (3, 1.0)]}, id="one takes what two held"),
    ],
)
def test_exchanged_words_can_keep_the_place_of_the_old_ones(unet, recorded, spans, swap):
    mapping = [0, 1, None, None, None, 5]
    with recorded.injecting(change(mapping, spans), swapped=True):
        made = run(unet, NEW)
    assert far(made, by_hand(unet, mapping, swap=swap)) < 2e-4


WEIGHTS = (1.0, 1.0, 2.5, 1.0, -1.0, 1.0)


def test_weights_scale_columns_of_the_map(unet, recorded):
    with recorded.injecting(change(range(TOKENS), weights=WEIGHTS, kind="reweight")):
        made = run(unet, OLD)
    assert far(made, by_hand(unet, range(TOKENS), WEIGHTS, new=OLD)) < 2e-4


def test_weights_alone_need_no_maps(unet):
    with AttentionControl(unet).weighting(WEIGHTS):
        made = run(unet, NEW)
    assert far(made, by_hand(unet, [None] * TOKENS, WEIGHTS)) < 1e-5


def test_weights_of_one_change_nothing(unet):
    with AttentionControl(unet).weighting((1.0,) * TOKENS):
        made = run(unet, NEW)
    assert far(made, run(unet, NEW)) == 0


def test_calls_beyond_the_recorded_ones_run_free(unet):
    control = AttentionControl(unet, calls=1)
    with control.recording():
        run(unet, OLD)
    with control.injecting(EVERY):
        made = run(unet, NEW)
    plain = run(unet, NEW)
    assert (control.recorded_calls, far(made[:1], plain[:1]) > 1e-2, torch.equal(made[1], plain[1])) == (1, True, True)


def test_layers_above_the_limit_run_free(unet):
    control = AttentionControl(unet, max_positions=8)
    with pytest.raises(RecordingError, match="no attention map was recorded"), control.recording():
        run(unet, OLD)


def test_pictures_of_a_batch_have_their_own_changes(unet):
    """Pictures 0 and 1 of a guided batch (unconditional twice, then conditional twice)."""
    x, old, new = noise(3, 4), text(3, 4), text(4, 4)
    control = AttentionControl(unet)
    with control.recording(samples=2):
        run(unet, old, x)
    with control.injecting([SWAP, None]):
        made = run(unet, new, x)
    alone = AttentionControl(unet)
    with alone.recording():
        run(unet, old[[0, 2]], x[[0, 2]])
    with alone.injecting(SWAP):
        first = run(unet, new[[0, 2]], x[[0, 2]])
    free = run(unet, new, x)
    assert far([y[[0, 2]] for y in made], first) < 1e-5
    assert far([y[[1, 3]] for y in made], [y[[1, 3]] for y in free]) < 1e-6


def test_kept_maps_are_the_base_of_the_next_change(unet):
    """Two changes in a row: the second starts from the maps that the first ended with."""
    control, third = AttentionControl(unet), text(2)
    with control.recording():
        run(unet, OLD)
    with control.injecting(NONE, keep=True):
        run(unet, NEW)
    control.commit()
    with control.injecting(SWAP):
        made = run(unet, third)
    assert far(made, by_hand(unet, SWAP.mapping, old=NEW, new=third)) < 2e-4


def test_undo_keeps_the_old_maps(unet):
    control = AttentionControl(unet)
    with control.recording():
        run(unet, OLD)
    with control.injecting(NONE, keep=True):
        run(unet, NEW)
    control.undo()
    with control.injecting(SWAP):
        made = run(unet, NEW)
    assert far(made, by_hand(unet, SWAP.mapping)) < 2e-4


# -- with a session ------------------------------------------------------------------------------------------------------

MASK = torch.zeros(SIDE, SIDE, dtype=torch.bool)
MASK[4:10, 5:11] = True
EDITED = torch.where(MASK, noise(7), X)


def quiet(name="incremental"):
    """A policy that is sparse at every level of the small U-Net."""
    import dataclasses

    return dataclasses.replace(sige.policy(name), min_resolution=4, upsample_min_source=2, dense_above=1.0)


@pytest.mark.parametrize("name", ["incremental", "fisedit", "sige"])
def test_a_recording_is_the_same_with_control(unet, name):
    """Maps recorded while a session records: same output, same path, same bytes; and an edit of it is the same."""
    results = []
    for control in (None, AttentionControl(unet)):
        session = sige.Session(unet, quiet(name))
        with session.record(), control.recording() if control else contextlib.nullcontext():
            before = run(unet, OLD)
        with session.edit(MASK) as effect:
            after = run(unet, OLD, EDITED)
        results.append((before, after, session.state_bytes(), effect.macs, effect.fallbacks))
    (before, after, *plain), (before_too, after_too, *controlled) = results
    assert (far(before_too, before), far(after_too, after), controlled) == (0, 0, plain)


def test_maps_recorded_under_a_session_are_those_of_the_plain_model(unet, recorded):
    control = AttentionControl(unet)
    with sige.Session(unet, quiet()).record(), control.recording():
        run(unet, OLD)
    with control.injecting(SWAP):
        made = run(unet, NEW)
    with recorded.injecting(SWAP):
        assert far(made, run(unet, NEW)) < 1e-4


def test_control_runs_inside_dense_steps_of_an_edit(unet, recorded):
    session = sige.Session(unet, quiet())
    with session.record():
        run(unet, OLD)
    with session.edit(MASK, changed=("encoder_hidden_states",), dense=(0, 1)), recorded.injecting(SWAP):
        made = run(unet, NEW)
    with recorded.injecting(SWAP):
        assert far(made, run(unet, NEW)) < 1e-6


def test_control_works_while_a_session_records(unet, recorded):
    session = sige.Session(unet, quiet())
    with session.record(), recorded.injecting(SWAP):
        made = run(unet, NEW)
    with recorded.injecting(SWAP):
        assert far(made, run(unet, NEW)) < 1e-5


def test_control_works_in_sparse_steps(unet, recorded):
    """A mask of everything but one position: the sparse step is the dense one, but for what the cut-off position would add."""
    session = sige.Session(unet, quiet())
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[0, 0] = False
    x = torch.where(mask, noise(7), X)
    with session.record():
        run(unet, OLD)
    with session.edit(mask, changed=("encoder_hidden_states",)), recorded.injecting(SWAP):
        made = run(unet, NEW, x)
    with recorded.injecting(SWAP):
        expected = run(unet, NEW, x)
    with session.edit(mask, changed=("encoder_hidden_states",)):
        free = run(unet, NEW, x)
    assert far(made, expected) < 0.3 * far(free, expected)


def test_weights_reach_sparse_steps(unet):
    """A re-weighted word in a sparse edit: inside the mask as the dense model has it, outside as recorded, bit for bit."""
    session, control = sige.Session(unet, quiet()), AttentionControl(unet)
    with session.record():
        before = run(unet, OLD)
    with session.edit(MASK) as effect, control.weighting(WEIGHTS):
        made = run(unet, OLD, EDITED)
    with control.weighting(WEIGHTS):
        expected = run(unet, OLD, EDITED)
    with session.edit(MASK):
        free = run(unet, OLD, EDITED)
    inside = effect.active[:, None].expand_as(made[0])
    assert far([made[1][inside]], [expected[1][inside]]) < far([free[1][inside]], [expected[1][inside]])
    assert torch.equal(made[1][~inside], before[1][~inside])


def test_bytes_are_counted_on_meta_tensors():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(
            sample_size=SIDE,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    control = AttentionControl(model)
    x, t, words = (torch.empty(shape, device="meta") for shape in ((2, 4, SIDE, SIDE), (2,), (2, TOKENS, WIDTH)))
    with torch.no_grad(), control.recording():
        model(x, t, encoder_hidden_states=words)
    # one layer down, two up, one in the middle, all of 8x8; heads 4, two bytes a share
    assert control.bytes_by_positions() == {64: 4 * 4 * 64 * TOKENS * 2}


# -- memory, tidiness, refusals ------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_maps(unet, recorded):
    # 16x16: 1 + 2 layers of 2 heads; 8x8: 1 + 2 layers and the middle one of 4 heads; float16; two calls
    expected = {256: 3 * 2 * 256 * TOKENS * 2 * 2, 64: 4 * 4 * 64 * TOKENS * 2 * 2}
    assert (recorded.bytes_by_positions(), recorded.state_bytes()) == (expected, sum(expected.values()))


def test_a_limit_keeps_the_finest_layers_out(unet):
    control = AttentionControl(unet, max_positions=64)
    with control.recording():
        run(unet, OLD)
    assert list(control.bytes_by_positions()) == [64]


def test_closing_forgets(unet):
    control = AttentionControl(unet)
    with control.recording():
        run(unet, OLD)
    control.close()
    assert control.state_bytes() == 0


def test_work_aside_is_counted(unet):
    control = AttentionControl(unet)
    with control.recording():
        run(unet, OLD)
    # heads x positions x tokens x width of a head: 16 channels at 16x16, 32 at 8x8
    assert control.macs == 2 * TOKENS * (3 * 256 * 16 + 4 * 64 * 32)


def test_hooks_are_gone_after_a_block(unet):
    control = AttentionControl(unet)
    with pytest.raises(ZeroDivisionError), control.recording():
        raise ZeroDivisionError
    left = [name for name, module in unet.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert left == []


def test_a_failed_recording_keeps_the_earlier_maps(unet):
    control = AttentionControl(unet)
    with control.recording():
        run(unet, OLD)
    with pytest.raises(ZeroDivisionError), control.recording():
        run(unet, NEW, calls=CALLS[:1])
        raise ZeroDivisionError
    assert control.recorded_calls == len(CALLS)


def inject(control, unet, given, encoding=NEW, x=X, **options):
    with control.injecting(given, **options):
        run(unet, encoding, x)


@pytest.mark.parametrize(
    "act, error, message",
    [
        pytest.param(
            lambda c, u: inject(AttentionControl(u), u, SWAP),
            RecordingError,
            "no attention map is remembered",
            id="no maps",
        ),
        pytest.param(
            lambda c, u: AttentionControl(u).commit(), RecordingError, "waits for a commit", id="no kept maps"
        ),
        pytest.param(
            lambda c, u: inject(c, u, [SWAP, SWAP]),
            PromptError,
            "2 changes of prompts, but the maps of 1",
            id="two changes",
        ),
        pytest.param(
            lambda c, u: inject(c, u, change(range(77))),
            PromptError,
            "compared over 77 token positions, the U-Net reads 6",
            id="other length",
        ),
        pytest.param(
            lambda c, u: inject(c, u, SWAP, weights=(1.0, 2.0)),
            PromptError,
            "compared over 2 token positions, the U-Net reads 6",
            id="too few weights",
        ),
        pytest.param(
            lambda c, u: inject(c, u, SWAP, x=torch.zeros(2, 4, 8, 8)),
            ChangedInputError,
            "has 64 positions, its remembered map 256: use the size of the recorded picture",
            id="other size",
        ),
        pytest.param(
            lambda c, u: inject(c, u, SWAP, weights=[(1.0,) * 6] * 2),
            PromptError,
            "weights for 2 pictures",
            id="two weights",
        ),
    ],
)
def test_misuse_is_named(unet, recorded, act, error, message):
    with pytest.raises(error, match=message):
        act(recorded, unet)


@pytest.mark.parametrize(
    "samples, message",
    [
        pytest.param(3, "batch is 2, no multiple of the 3 pictures", id="more pictures than the batch"),
        pytest.param(0, "attention control for 0 pictures: give their number", id="none"),
    ],
)
def test_the_number_of_pictures_must_fit(unet, samples, message):
    with pytest.raises(ChangedInputError, match=message), AttentionControl(unet).recording(samples=samples):
        run(unet, OLD)


def test_blocks_do_not_nest(unet):
    control = AttentionControl(unet)
    with pytest.raises(RecordingError, match="cannot be nested"), control.recording(), control.weighting(WEIGHTS):
        run(unet, OLD)


def test_a_sparse_step_cannot_be_recorded(unet):
    session = sige.Session(unet, quiet())
    with session.record():
        run(unet, OLD)
    with pytest.raises(RecordingError, match="runs sparsely"), session.edit(MASK), AttentionControl(unet).recording():
        run(unet, OLD, EDITED)


def test_a_model_without_a_prompt_is_refused():
    from diffusers import UNet2DModel

    model = UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    with pytest.raises(ModelError, match="^UNet2DModel has no cross-attention"):
        AttentionControl(model)


def test_fused_projections_are_refused(unet):
    unet.fuse_qkv_projections()
    try:
        with pytest.raises(ModelError, match="unfuse_qkv_projections"):
            AttentionControl(unet)
    finally:
        unet.unfuse_qkv_projections()
        for module in unet.modules():
            if hasattr(module, "fused_projections"):
                module.fused_projections = False


@pytest.mark.parametrize(
    "size, positions",
    [
        pytest.param((16, 16), 256, id="same"),
        pytest.param((16, 24), 96, id="half"),
        pytest.param((15, 9), 12, id="odd sides"),
    ],
)
def test_maps_are_put_back_at_the_positions_outside_the_mask(size, positions):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[0, 0] = True
    maps, base = torch.zeros(2, positions, TOKENS).half(), torch.rand(2, positions, TOKENS).half()
    put_back_outside(maps, base, Carry(EVERY, swapped=True), mask)
    assert (torch.equal(maps[:, 1:], base[:, 1:]), maps[:, 0].any().item()) == (True, False)


def test_words_more_keep_their_own_attention_outside_the_mask():
    maps, base = torch.zeros(1, 256, TOKENS).half(), torch.rand(1, 256, TOKENS).half()
    added = change([0, None, 1, 2, 3, 4], [(1, 1, 1, 2)], kind="addition")
    put_back_outside(maps, base, Carry(added, swapped=True), torch.zeros(16, 16, dtype=torch.bool))
    assert (torch.equal(maps[..., [0, 2, 3, 4, 5]], base[..., :5]), maps[..., 1].any().item()) == (True, False)


def test_a_layer_that_does_not_halve_the_latents_is_refused():
    maps = torch.zeros(1, 100, TOKENS)
    message = (
        r"^a layer has 100 positions, which the latents' \(16, 16\) halved again and again do not give: use attention"
    )
    with pytest.raises(ModelError, match=message):
        put_back_outside(maps, maps, Carry(EVERY, swapped=True), torch.zeros(16, 16, dtype=torch.bool))


def test_a_block_may_begin_with_a_later_call(unet):
    control = AttentionControl(unet, calls=2, branch=0)
    with control.recording(samples=2):
        run(unet, OLD)
    with control.injecting(SWAP):
        _, expected = run(unet, NEW)
    with control.injecting(SWAP, first=1):
        (later,) = run(unet, NEW, calls=CALLS[1:])
    with control.injecting(SWAP):
        (earlier,) = run(unet, NEW, calls=CALLS[1:])
    assert (torch.equal(later, expected), torch.equal(earlier, expected)) == (True, False)
