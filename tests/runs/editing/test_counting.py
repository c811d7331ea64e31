"""MACs of editing methods: counted on meta tensors, they are those of the same run with arithmetic."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel

import sige.paths
from sige.datasets import prompt_masks
from sige.datasets.edit import MissingSample
from sige.macs import MacCounter
from sige.macs import count as count_macs
from sige.runs.editing import attention, counting, pictures, pix2pix_zero, registry
from sige.runs.errors import JobFailure, UserError

ROWS = {"sdtp": 2, "sdip": 2, "prompt_to_prompt": 4, "sdedit": 2, "instruct_pix2pix": 3}
FINE = {"block": 2, "dilation": 1, "min_resolution": 4}  # of maps as small as these
OPTIONS = {
    "fisedit": {"policy": "incremental", "dials": FINE, "dense_first": 1, "dense_last": 1},
    "diffedit": {"maps": 3},
}


def configured(name):
    """The resolved config of conf/model/<name>.yaml."""
    return OmegaConf.to_container(OmegaConf.load(sige.paths.conf_dir() / "model" / f"{name}.yaml"))


def model_config(pipe):
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    return {"name": "small", "config": config}


def count_small(pipes, make_task, mask, method, **more):
    """The Count of a method on the small U-Net; pictures of 128, as the counted autoencoder reduces by 8, the small one by 4."""
    task = make_task(height=128, width=128, mask=mask, options=OPTIONS.get(method, {}), **more)
    return counting.count(method, task, model_config(pipes[registry.kind(method)]))


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def counted(pipes, make_task, spot, known):
    """``count_small``, each method once."""

    def run(method, **more):
        key = (method, *sorted(more.items()))
        if key not in known:
            known[key] = count_small(pipes, make_task, spot, method, **more)
        return known[key]

    return run


def row_macs(pipe, rows):
    """MACs of one plain call of the small U-Net with a batch of ``rows``."""
    sample = torch.zeros(rows, pipe.unet.config.in_channels, 16, 16)
    return count_macs(pipe.unet, sample, 5, encoder_hidden_states=torch.zeros(rows, 77, 64)).total


@pytest.mark.parametrize("method", [name for name in registry.EDITORS if name != "pix2pix_zero"])
def test_counts_are_those_of_the_run_with_arithmetic(pipes, make_task, spot, counted, method, monkeypatch):
    pipe, macs = pipes[registry.kind(method)], []
    forward = pipe.unet.forward

    def counting_forward(*args, **kwargs):
        with MacCounter() as counter:
            output = forward(*args, **kwargs)
        assert not counter.count.unlisted
        macs.append(counter.count.total)
        return output

    monkeypatch.setattr(pipe.unet, "forward", counting_forward)
    task = make_task(image=torch.rand(3, 64, 64), mask=spot, options=OPTIONS.get(method, {}))
    calls = len(registry.edit(method, pipe, task).calls)
    found = counted(method)
    assert (found.calls, found.macs_total) == (calls, sum(macs[-calls:]))  # before them, FISEdit's recorded run


@pytest.mark.parametrize("method, rows", [pytest.param(*item, id=item[0]) for item in ROWS.items()])
def test_rows_decide_what_a_plain_method_costs(pipes, counted, method, rows):
    found = counted(method)
    plain = found.calls * row_macs(pipes[registry.kind(method)], rows)
    assert plain <= found.macs_total < 1.05 * plain  # Prompt-to-Prompt multiplies maps, too


def test_the_mean_of_a_step_is_over_all_steps(counted):
    found = counted("sdedit", strength=0.5)
    assert found.calls == 2 and found.macs_per_step == found.macs_total / 4


def test_parts_add_up(counted):
    found = counted("diffedit")
    assert {part: calls for part, (calls, _) in found.parts.items()} == {"mask": 3, "invert": 3, "edit": 3}
    assert sum(macs for _, macs in found.parts.values()) == found.macs_total


def test_a_step_backwards_is_half_of_one_with_guidance(counted):
    parts = counted("diffedit").parts
    assert 2 * parts["invert"][1] == parts["edit"][1]


def test_backward_passes_are_counted(pipe, counted):
    found = counted("pix2pix_zero", steps=2)
    maps = pix2pix_zero._Maps()
    timestep = torch.tensor(5)
    with torch.no_grad(), attention.installed(pipe.unet, maps.processor), sdpa_kernel(SDPBackend.MATH):
        text = pictures.texts(pipe, "a dog", "a cat")
        forward = count_macs(pipe.unet, torch.zeros(2, 4, 16, 16), timestep, encoder_hidden_states=text).total
        reference = maps.take()
        with MacCounter() as counter:
            pix2pix_zero._descended(pipe, torch.zeros(1, 4, 16, 16), timestep, text, maps, reference, 0.1)
    descended = counter.count.total
    assert not counter.count.unlisted and descended > 1.8 * forward
    assert found.parts["edit"] == (4, 2 * (descended + forward)) and found.parts["reference"] == (2, 2 * forward)


@pytest.mark.parametrize("method", ["prompt_to_prompt", "plug_and_play", "diffedit"])
def test_calls_that_are_not_run_again_count_the_same(pipes, make_task, spot, counted, method, monkeypatch):
    short = counted(method)
    monkeypatch.setattr(counting._OnMeta, "_signature", lambda self, *_: None)
    assert count_small(pipes, make_task, spot, method) == short


def test_sparse_steps_stand_alone(counted):
    found = counted("fisedit")
    calls, macs = found.parts["sparse"]
    assert (found.parts["dense"][0], calls, found.parts["last"][0]) == (1, 2, 1)
    assert found.macs_per_sparse_step == macs / calls < 0.7 * found.macs_per_step


def test_other_methods_have_no_sparse_steps(counted):
    assert counted("sdtp").macs_per_sparse_step is None


def test_the_model_s_dials_count(pipes, make_task, spot):
    config = {**model_config(pipes["text"]), "dials": {"incremental": {"dense_modules": ["*"]}}}
    task = make_task(height=128, width=128, mask=spot, steps=2, options={"policy": "incremental"})
    found = counting.count("fisedit", task, config)
    assert found.macs_per_sparse_step > 0.95 * row_macs(pipes["text"], 2)


@pytest.mark.parametrize("name, rows, expected", [("sd21_unet", 2, 2149.1), ("instruct_pix2pix_unet", 3, 3222.5)])
def test_full_size(make_task, name, rows, expected):
    method = "sdtp" if rows == 2 else "instruct_pix2pix"
    found = counting.count(method, make_task(height=768, width=768), configured(name))
    assert round(found.macs_per_step / 1e9, 1) == expected


def test_full_size_on_a_published_mask(make_task):
    try:
        mask = prompt_masks.read_mask("fisedit-88")
    except MissingSample as error:
        assert "fisedit-88" in str(error)
        return
    found = counting.count("fisedit", make_task(height=768, width=768, steps=2, mask=mask), configured("sd21_unet"))
    assert round(found.macs_per_sparse_step / 1e9, 1) == 335.4


def test_another_kind_of_network_is_refused(pipes, make_task):
    with pytest.raises(JobFailure, match="small takes 4 channels, a pipeline of the kind 'instruct' gives 8"):
        counting.count("instruct_pix2pix", make_task(), model_config(pipes["text"]))


def test_fisedit_needs_a_mask(pipes, make_task):
    with pytest.raises(UserError, match="counting fisedit needs a mask"):
        counting.count("fisedit", make_task(), model_config(pipes["text"]))


def test_an_operator_that_cannot_be_counted_is_named(pipes, make_task, spot, monkeypatch):
    made = counting.Tally.__init__

    def with_unknown(self):
        made(self)
        self.count.unlisted.append("mystery")

    monkeypatch.setattr(counting.Tally, "__init__", with_unknown)
    with pytest.raises(JobFailure, match="sdtp runs operators that cannot be counted: mystery"):
        count_small(pipes, make_task, spot, "sdtp")


def test_a_count_is_a_plain_record(counted):
    assert set(dataclasses.asdict(counted("sdtp"))) >= {"calls", "macs_total", "macs_per_step", "steps"}
