"""The command line, a Hydra app: compose, plan, execute, report.

    python -m sige.runs experiment=reproduce            everything the papers print that can be measured here
    python -m sige.runs edit=brush-5 method=[sige,pixel] metric=[macs,error]
    python -m sige.runs -m edit=brush-1.2,brush-5 model=ddpm_church256,ddpm_tiny
    ... dry=true        show what would run and why       force=true    run again what is there

Exit codes: 0 all is well, 1 some run failed (its rows say why), 2 a request that cannot be met, 3 results that could
not be written, 130 stopped by Ctrl-C.
"""

import os
import re
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sige.paths import conf_dir
from sige.runs.errors import StoreError, UserError
from sige.runs.process import leave_threads_free

OK, FAILED, WRONG, UNWRITTEN, STOPPED = 0, 1, 2, 3, 130
_ended: list[int] = []


def main() -> None:
    """Run the app and end the process with its exit code."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us as they are; we make the sentence
    leave_threads_free()
    register_edits()
    try:
        _app()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_tell(sentence(error), WRONG))
    except KeyboardInterrupt:
        sys.exit(_tell("stopped.", STOPPED))
    sys.exit(max(_ended, default=OK))


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _app(config: DictConfig) -> None:
    """One Hydra job. Sentences for the user are printed here: Hydra would put a line of its own before them."""
    from sige.analysis.schema import SchemaError

    try:
        _ended.append(run(config, list(HydraConfig.get().overrides.task)))
    except (UserError, SchemaError) as error:
        _ended.append(_tell(str(error), WRONG))
    except (HydraException, OmegaConfBaseException) as error:
        _ended.append(_tell(sentence(error), WRONG))
    except StoreError as error:
        _ended.append(_tell(str(error), UNWRITTEN))


def run(config: DictConfig, overrides: list[str]) -> int:
    """Plan and execute one composed configuration; returns the exit code."""
    from sige.runs import plan
    from sige.runs.execute import execute, result_files
    from sige.runs.jobs import expand
    from sige.runs.store import Store
    from sige.runs.tracker import check, open_tracker

    check(config.tracker)
    folder = Path(config.results)
    choices = hardware_choices()
    jobs = [
        job for part in parts(config, overrides) for job in expand(OmegaConf.to_container(part, resolve=True), choices)
    ]
    store = Store(folder)
    planned = plan.make(jobs, store, force=config.force)
    for job in jobs:
        if job["note"]:
            print(f"{job['edit']['name']} {job['note']}")
    if config.dry:
        print(plan.table(planned))
        print(f"{plan.summary(planned)}; nothing was run (dry=true)")
        return OK
    print(plan.summary(planned), flush=True)
    tracker = open_tracker(config.tracker, folder, {"experiment": config.experiment, "overrides": overrides})
    try:
        outcome = execute(planned, store, config.timeout_s, tracker)
    finally:
        store.close()
    print(f"{outcome.text()}; the table is {store.path}")
    if config.report and not outcome.interrupted:
        report(folder)
    tracker.finish(result_files(folder))
    if outcome.interrupted:
        raise KeyboardInterrupt
    return FAILED if set(outcome.counts) - {"ok", "skipped"} else OK


def parts(config: DictConfig, overrides: list[str]) -> list[DictConfig]:
    """What to run: the composed configuration, or those of the experiments it includes (which may include others), with the
    user's overrides."""
    if not config.include:
        return [config]
    mine = [override for override in overrides if not override.startswith(("experiment=", "include="))]
    included = (hydra.compose("config", [f"experiment={name}", *mine]) for name in config.include)
    return [part for one in included for part in parts(one, mine)]


def hardware_choices() -> dict[str, dict]:
    """The configurations that ``hardware=auto`` chooses from, by device."""
    folder = conf_dir() / "hardware"
    return {name: OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml")) for name in ("cuda", "mps", "cpu")}


def register_edits() -> None:
    """Make every edit of every data set a choice of the group ``edit``; conf/edit/ has those with more than a name."""
    from sige.datasets import registry

    store = ConfigStore.instance()
    for name in registry.names():
        if not (conf_dir() / "edit" / f"{name}.yaml").is_file():
            store.store(group="edit", name=name, node={name.replace(".", "_").replace("-", "_"): {"name": name}})


def report(folder: Path) -> None:
    """Make tables, figures, verdicts and report.html of everything in the folder, and say what was made."""
    from sige.analysis import report as analysis

    made = analysis.build(folder)
    kinds: dict[str, int] = {}
    for path in made:
        kinds[path.suffix.lstrip(".")] = kinds.get(path.suffix.lstrip("."), 0) + 1
    print(f"made {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}:")
    for path in made:
        if path.suffix in (".svg", ".html", ".md") or path.parent == folder:
            print(f"  {path}")
    counts = analysis.verdict_counts(folder)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"verdicts on the papers' {sum(counts.values())} numbers: {told}")


def choices(group: str) -> list[str]:
    """What a configuration group offers: the files in its folder and what is registered in code."""
    files = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    try:
        files |= {name.removesuffix(".yaml") for name in ConfigStore.instance().list(group)}
    except (OSError, KeyError):
        pass  # a group that has files only
    return sorted(files)


def sentence(error: Exception) -> str:
    """A composition error as one sentence that names the value and the choices."""
    text = " ".join(str(error).split())
    missing = re.search(r"Could not (?:find|load) '([\w@]+)/([^']+)'", text)
    if isinstance(error, MissingConfigException) and missing:
        group, value = missing[1], missing[2]
        return f"unknown {group} {value!r}; choose one of {', '.join(choices(group))}."
    return text


def _tell(text: str, code: int) -> int:
    print(f"sige.runs: {text}", file=sys.stderr, flush=True)
    return code
