"""The command line: compositions, sentences for what cannot be composed, dry plans, one small run from end to end."""

import functools
from pathlib import Path

import hydra
import pytest
from command_line import CommandLine
from omegaconf import OmegaConf

from sige.analysis import schema
from sige.paths import conf_dir
from sige.runs import app
from sige.runs.jobs import expand
from sige.runs.store import Store

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model=ddpm_tiny", "hardware=cpu", "hardware.threads=1", "dataset.synthetic.seed=1"]


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """``call(folder, override, ..., flags=())`` runs ``python -m sige.runs`` in a process of its own."""
    line = CommandLine(ROOT, tmp_path_factory.mktemp("imports") / "stderr")
    yield lambda folder, *overrides, flags=(): line.call(*flags, f"results={folder}", *overrides)
    line.close()


@pytest.fixture(scope="module")
def compose():
    """``compose(override, ...)``: the configuration as the app sees it. Each is composed once, by whoever asks first."""
    app.register_edits()
    original = hydra.compose
    made = functools.cache(lambda *overrides: original("config", list(overrides)))
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", lambda name, overrides: made(*overrides))
        yield made


def jobs_of(config):
    return expand(OmegaConf.to_container(config, resolve=True), app.hardware_choices())


def test_the_default_composition_gives_jobs(compose):
    (job,) = jobs_of(compose("hardware=cpu"))
    assert (job["model"]["name"], job["edit"]["name"]) == ("ddpm_church256", "brush-1.2")
    assert list(job["methods"]) == ["sige_public", "sige", "incremental", "pixel"]


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_composes_to_jobs(compose, experiment):
    overrides = [f"experiment={experiment}", "hardware=cpu"]
    found = [job for part in app.parts(compose(*overrides), overrides) for job in jobs_of(part)]
    assert found and all(job["experiment"] != "reproduce" for job in found)


@pytest.mark.parametrize("group", ["method", "metric", "edit"])
def test_every_choice_of_a_group_of_many_composes(compose, group):
    """All at once. What two of them define is there once, so there may be fewer than were chosen."""
    assert compose(f"{group}=[{','.join(app.choices(group))}]")[group]


@pytest.mark.parametrize("group, form", [("model", "{}"), ("dataset", "[{}]")], ids=["model", "dataset"])
def test_every_choice_of_a_group_composes(compose, group, form):
    for name in app.choices(group):
        compose(f"{group}={form.format(name)}")


@pytest.mark.parametrize(
    "name", ["church-432", "brush-1.2", "rectangle-100", "scattered-15.5", "brush_sizes", "brighten-30"]
)
def test_edits_are_choices(name):
    app.register_edits()
    assert name in app.choices("edit")


def test_included_experiments_get_the_users_overrides(compose):
    overrides = ["experiment=reproduce", "model=ddpm_tiny", "seed=3"]
    found = app.parts(compose(*overrides), overrides)
    assert {(part.model.name, part.seed) for part in found} == {("ddpm_tiny", 3)} and len(found) > 1


def test_included_experiments_may_be_named_on_the_command_line(compose):
    overrides = ["experiment=bench", "include=[bench/attend_64,smoke]"]
    found = app.parts(compose(*overrides), overrides)
    assert [(part.experiment, part.model.name) for part in found] == [("bench", "attend_64"), ("smoke", "ddpm_tiny")]


def test_bench_measures_every_operator(compose):
    from sige.runs.models.operators import OPERATORS

    parts = app.parts(compose("experiment=bench"), ["experiment=bench"])
    assert {part.model.get("operator") for part in parts} == {*OPERATORS, None}


def test_bench_measures_a_model_against_the_whole_dense_ladder(compose):
    (job, _) = jobs_of(compose("experiment=bench/models", "hardware=cpu"))
    ladder = ["dense", "dense_channels_last", "dense_bf16", "dense_compiled", "dense_graphs"]
    assert list(job["methods"])[:5] == ladder


def test_the_church_model_is_the_papers(compose):
    """113.67 M parameters, counted without data."""
    import torch
    from diffusers import UNet2DModel

    with torch.device("meta"):
        module = UNet2DModel(**OmegaConf.to_container(compose("model=ddpm_church256").model.config))
    assert sum(parameter.numel() for parameter in module.parameters()) == 113_673_219


@pytest.mark.parametrize(
    "override, sentence",
    [
        pytest.param(
            "model=dppm", "sige.runs: unknown model 'dppm'; choose one of ddpm_church256, ddpm_tiny,", id="model"
        ),
        pytest.param("method=[sige,siege]", "sige.runs: unknown method 'siege'; choose one of dense, ", id="method"),
        pytest.param(
            "method.sige.policy=siege",
            "sige.runs: method sige: unknown policy 'siege': choose one of sige, sige_public,",
            id="policy",
        ),
        pytest.param("edit=brush", "sige.runs: unknown edit 'brush'; choose one of brighten-30, brush-1.2,", id="edit"),
        pytest.param("tracker=mlflow", "sige.runs: unknown tracker 'mlflow'; choose none or wandb.", id="tracker"),
    ],
)
def test_an_unknown_value_ends_in_one_sentence_and_code_2(call, tmp_path, override, sentence):
    done = call(tmp_path, "dry=true", override)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(sentence)


def test_an_unknown_value_in_a_sweep_ends_the_same_way(call, tmp_path):
    done = call(tmp_path, "dry=true", "method=sige,siege", flags=["-m"])
    assert done.returncode == 2 and done.stderr.startswith("sige.runs: unknown method 'siege'; choose one of dense,")


def test_a_table_of_another_schema_version_ends_in_one_sentence_and_code_2(call, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    schema.write_table(schema.empty_table(), tmp_path / "runs.parquet")
    done = call(tmp_path, "dry=true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(
        f"sige.runs: {tmp_path}/runs.parquet has schema version 99, this code reads version 1"
    )


@pytest.fixture(scope="module")
def smoke(call, tmp_path_factory):
    """One run of the tiny model through everything, and the same command again."""
    folder = tmp_path_factory.mktemp("results")
    command = (folder, "experiment=smoke", "rounds=2", *TINY)
    return folder, call(*command), call(*command)


def test_a_run_ends_well_and_says_so(smoke):
    _, first, _ = smoke
    assert first.returncode == 0, first.stderr
    assert "1 to run, 0 cached, 0 stale" in first.stdout and "[1/1] smoke · ddpm_tiny · brush-5" in first.stdout


def test_a_run_fills_the_table(smoke):
    table = Store(smoke[0]).load()
    assert set(table["status"]) == {"ok"}, list(table["reason"])
    metrics = set(table[table["method"] == "incremental"]["metric"])
    assert {
        "macs",
        "macs_ratio",
        "error_rel_l2",
        "gate",
        "state_bytes.total",
        "latency",
        "speedup",
        "plan_ms",
        "peak_memory",
    } <= metrics
    assert set(table["hardware"]) == {"cpu"} and set(table["dtype"]) == {"float32"}


def test_the_dispatcher_count_and_the_rules_agree_on_the_dense_step(smoke):
    """The engine's own formulas for the whole model against the count of what a dense forward executes."""
    import json

    folder, *_ = smoke
    table = Store(folder).load()
    dense = table[(table["method"] == "dense") & (table["metric"] == "macs")]["value"].item()
    assert dense == pytest.approx(table[table["metric"] == "dense_macs"]["value"].iloc[0])
    assert json.loads(table["config"].iloc[0])["model"]["name"] == "ddpm_tiny"


def test_a_run_records_where_it_was_made(smoke):
    store = Store(smoke[0])
    environment = store.record(store.load()["run_id"].iloc[0])["environment"]
    assert {"machine", "libraries", "threads", "load_average", "memory_mib", "commit", "allocator"} <= set(environment)
    assert environment["threads"] == 1


def test_the_same_command_again_does_nothing(smoke):
    assert "0 to run, 1 cached, 0 stale" in smoke[2].stdout and smoke[2].returncode == 0


def test_a_dry_plan_runs_nothing_and_says_why(call, smoke):
    folder = smoke[0]
    before = (folder / "runs.parquet").read_bytes()
    done = call(folder, "experiment=smoke", "rounds=2", "seed=0,1", "dry=true", *TINY, flags=["-m"])
    assert (
        "cached" in done.stdout
        and "nothing there" in done.stdout
        and done.stdout.count("nothing was run (dry=true)") == 2
    )
    assert (folder / "runs.parquet").read_bytes() == before


def test_a_sweep_lands_in_one_table_and_a_run_that_fails_is_a_row_and_code_1(call, tmp_path):
    """The model is the toy: nothing of diffusers needs to be loaded for it."""
    chosen = ("model=toy_conv", "edit=brush-5", "method=sige", "metric=[macs]", "hardware=cpu", "hardware.threads=1")
    sizes = ("dataset.synthetic.width=256", "dataset.synthetic.height=256,32")
    done = call(tmp_path, *chosen, *sizes, flags=["-m"])
    assert done.returncode == 1, done.stderr
    table = Store(tmp_path).load()
    assert set(table["status"]) == {"ok", "invalid"}
    (reason,) = table[table["status"] == "invalid"]["reason"]
    assert reason == "edit brush-5 is 32x256, model toy_conv takes 256x256 (height x width)."


def test_weights_that_are_not_there_are_a_row(call, tmp_path):
    done = call(
        tmp_path,
        "edit=brush-5",
        "method=sige",
        "metric=[macs]",
        "model.weights=pretrained",
        "model.weights_path=/nowhere",
        *TINY,
    )
    table = Store(tmp_path).load()
    assert (done.returncode, list(table["status"])) == (1, ["missing_weights"])
    assert table["reason"].item().startswith("ddpm_tiny: there is nothing at /nowhere; put a diffusers folder with ")


def test_the_report_is_made_at_the_end(tmp_path, monkeypatch, capsys):
    from sige.analysis import report

    monkeypatch.setattr(
        report, "build", lambda folder: [folder / "verdicts.csv", folder / "figures" / "a.svg", folder / "report.html"]
    )
    monkeypatch.setattr(report, "verdict_counts", lambda folder: {"reproduced": 3, "not run": 4})
    app.report(tmp_path)
    printed = capsys.readouterr().out
    assert "made 1 csv, 1 html, 1 svg:" in printed and str(tmp_path / "report.html") in printed
    assert "verdicts on the papers' 7 numbers: 3 reproduced, 4 not run" in printed
