"""Tasks, the list of methods, and methods as a configuration names them."""

import diffusers
import pytest
import torch
from omegaconf import OmegaConf

import sige.paths
from sige.runs.editing import registry, runner
from sige.runs.errors import JobFailure, UserError
from sige.runs.models import text_to_image


@pytest.mark.parametrize(
    "settings, message",
    [
        pytest.param({"new_prompt": None}, "prompts are 'a dog on a sofa' and None; give two strings", id="prompt"),
        pytest.param({"steps": 0}, "an edit of 0 steps", id="steps"),
        pytest.param({"strength": 1.5}, "strength 1.5; give a share of the steps above 0 and at most 1", id="strength"),
        pytest.param({"image": torch.zeros(3, 32, 32)}, r"shape \(3, 32, 32\); give \(3, 64, 64\)", id="picture"),
        pytest.param({"mask": torch.zeros(16, 16)}, r"mask is torch.float32 of shape \(16, 16\); give bool", id="mask"),
    ],
)
def test_tasks_that_cannot_be_done(make_task, settings, message):
    with pytest.raises(UserError, match=message):
        make_task(**settings)


@pytest.mark.parametrize("name", registry.EDITORS)
def test_each_method_says_what_it_runs_and_takes(name):
    method = registry.find(name)
    assert registry.kind(name) in ("text", "inpaint", "instruct") and isinstance(method.OPTIONS, dict)


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="no editing method 'photoshop'; there are sdtp"):
        registry.find("photoshop")


def test_a_missing_pipeline_is_named(pipes, make_task):
    with pytest.raises(UserError, match="sdip runs a pipeline of the kind 'inpaint'; given are text"):
        registry.edit("sdip", {"text": pipes["text"]}, make_task())


def test_an_unknown_option_is_named(pipe, make_task):
    with pytest.raises(UserError, match="sdedit has no option 'power'; it has strength"):
        registry.edit("sdedit", pipe, make_task(options={"power": 2}))


def test_the_configuration_gives_the_settings(pipe, make_task):
    result = runner.run({"editor": "sdedit", "options": {"strength": 0.5}}, pipe, make_task())
    assert len(result.calls) == 2


def test_a_task_s_own_settings_count_more(pipe, make_task):
    options = {"editor": "sdedit", "options": {"strength": 0.5}}
    assert len(runner.run(options, pipe, make_task(options={"strength": 1.0})).calls) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param({"editor": "gimp"}, "no editing method 'gimp'", id="editor"),
        pytest.param({"editor": "sdtp", "options": {"x": 1}}, "sdtp has no option 'x'; it has none", id="option"),
    ],
)
def test_configurations_that_cannot_be_used(options, message):
    with pytest.raises(UserError, match=message):
        runner.check(options)


def test_one_step_is_no_place_for_an_editor():
    with pytest.raises(JobFailure, match="sdtp edits whole pictures by running a pipeline"):
        runner.build("sdtp", {"editor": "sdtp"}, None, {})


def editor_methods():
    """The methods of conf/method/ that edit whole pictures, by name."""
    found = {}
    for path in sorted((sige.paths.conf_dir() / "method").glob("*.yaml")):
        for name, options in OmegaConf.to_container(OmegaConf.load(path)).items():
            if options["runner"] == "sige.runs.editing.runner":
                found[name] = options
    return found


@pytest.mark.parametrize("name", editor_methods())
def test_configured_methods_can_be_used(name):
    runner.check(editor_methods()[name])


@pytest.mark.parametrize("name", [name for name in registry.EDITORS if name != "fisedit"])
def test_a_configured_method_says_its_own_settings(name):
    options = editor_methods()[name]
    assert options["editor"] == name
    assert {key: registry.find(name).OPTIONS[key] for key in options["options"]} == options["options"]


def test_every_method_is_configured():
    assert {options["editor"] for options in editor_methods().values()} == set(registry.EDITORS)


@pytest.fixture(scope="module")
def in_16_bits():
    """Pipelines in bfloat16 with FISEdit's scheduler."""
    pipes = {}
    for kind in ("text", "inpaint", "instruct"):
        pipe = text_to_image.small_pipeline(kind=kind)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            torch.nn.Module.to(part, torch.bfloat16)
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        pipes[kind] = pipe
    return pipes


@pytest.mark.parametrize("name", registry.EDITORS)
def test_every_method_runs_in_16_bits(in_16_bits, make_task, half, name):
    options = {"diffedit": {"maps": 2}}.get(name, {})
    result = registry.edit(name, in_16_bits, make_task(steps=2, mask=half, options=options))
    assert result.image.dtype == result.original.dtype == torch.float32 and result.image.shape == (3, 64, 64)
    assert result.image.isfinite().all() and not torch.equal(result.image, result.original)
