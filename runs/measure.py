"""One job measured: inputs, a runner for each method, one probe step of each, then the metrics one after the other.

The bench is what a metric sees. A method that fails at any point is taken out with a failure row, the others go on.
"""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator

import torch

from sige.datasets import registry
from sige.datasets.edit import Edit, MissingSample
from sige.runs.errors import JobFailure, status_of
from sige.runs.methods import Runner, Step
from sige.runs.metrics import Reading
from sige.runs.models.zoo import Zoo


class Runners:
    """The runners of one worker, kept from job to job while the next one wants the same method on the same original."""

    def __init__(self, zoo: Zoo, hardware: dict):
        self.zoo, self.hardware = zoo, hardware
        self._kept: dict[tuple, Runner] = {}

    def fetch(self, methods: dict, original: tuple, key: str) -> Iterator[tuple[str, Runner | BaseException]]:
        """(name, recorded runner or what went wrong) for each method; ``key`` names the original that is recorded."""
        wanted = {name: (name, repr(options), key) for name, options in methods.items()}
        for gone in [kept for kept in self._kept if kept not in wanted.values()]:
            self._kept.pop(gone).close()
        for name, options in methods.items():
            if wanted[name] not in self._kept:
                try:
                    runner = importlib.import_module(options["runner"]).build(name, options, self.zoo, self.hardware)
                    runner.record(original)
                except Exception as error:
                    yield name, error
                    continue
                self._kept[wanted[name]] = runner
            yield name, self._kept[wanted[name]]

    def drop(self, runner: Runner) -> None:
        """Forget a runner that failed: its state is not to be trusted."""
        self._kept = {key: kept for key, kept in self._kept.items() if kept is not runner}


class Bench:
    """What the metrics of one job work on.

    runners: name -> runner, those that have not failed.    probes: name -> one Step of it on the edited input.
    reference: (B, C, H, W) float32 output of the dense float32 model on the edited input; reference_method made it. On meta
    tensors there is no reference, and a dense method has no probe.
    dense_macs, dense_count: of one dense step.    gates: name -> whether its error is within budget.
    samples: raw timings to keep.
    """

    def __init__(self, job: dict, zoo: Zoo, kept: Runners, tick: Callable[[], None] = lambda: None):
        self.job, self.zoo, self.kept, self.tick = job, zoo, kept, tick
        self.failures: dict[str, tuple[str, str]] = {}
        self.gates: dict[str, bool] = {}
        self.samples: dict[str, dict] = {}
        self.edit = load_edit(job)
        self.mask = self.edit.mask
        size = (job["model"]["input"]["height"], job["model"]["input"]["width"])
        if self.edit.size != size:
            have, want = ("x".join(map(str, shape)) for shape in (self.edit.size, size))
            raise JobFailure(
                "invalid",
                f"edit {self.edit.name} is {have}, model {job['model']['name']} takes {want} (height x width).",
            )
        self.original = zoo.inputs(self.edit.original, job["seed"])
        # A sample may differ from its original outside its mask, by less than the mask's threshold; an input must not.
        edited = torch.where(self.mask, self.edit.edited, self.edit.original)
        self.edited, self.changed = zoo.inputs(edited, job["seed"]), ()
        if self.edit.prompt and hasattr(zoo.loader, "with_new_text"):
            self.edited, self.changed = zoo.loader.with_new_text(zoo.model, self.edited, job["seed"])
        self.runners: dict[str, Runner] = {}
        self.probes: dict[str, Step] = {}

    def prepare(self) -> None:
        """Record and probe each method, and make the dense reference."""
        key = f"{self.edit.dataset}:{self.job['dataset']}:{self.job['seed']}"
        if self.edit.source == "sample":
            key += self.edit.name
        for name, runner in self.kept.fetch(self.job["methods"], self.original, key):
            if isinstance(runner, BaseException):
                self.fail(name, runner)
                continue
            self.runners[name] = runner
            if not (runner.dense and self.zoo.on_meta):  # there is nothing in a dense step but its count, taken below
                with self.guard(name):
                    self.probes[name] = self.step(name)
            self.tick()
        self.dense_count = count_dense(self.zoo, self.original)
        self.dense_macs = self.dense_count.total
        if not self.zoo.on_meta:
            self._make_reference()

    def _make_reference(self) -> None:
        """The output that errors are against: of the dense float32 method, or of the model itself where there is none."""
        self.reference_method = next(
            (name for name, runner in self.runners.items() if runner.dense and runner.dtype == "float32"), ""
        )
        if self.reference_method:
            self.reference = self.probes[self.reference_method].output.float()
        else:
            module, inputs = (
                self.zoo.module("contiguous", "float32"),
                self.zoo.adapt(self.edited, "contiguous", "float32"),
            )
            with torch.inference_mode():
                self.reference = self.zoo.loader.forward(module, *inputs)

    def step(self, method: str, around=contextlib.nullcontext) -> Step:
        """One step of a method on the edited input."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty mask warns at every step; the row says it once, by its zero MACs
            runner = self.runners[method]
            runner.changed = self.changed
            return runner.step(self.edited, self.mask, around)

    def set_gate(self, reading: Reading) -> Reading:
        """Note the verdict of a ``gate`` reading for the metrics that follow."""
        self.gates[reading.method] = reading.value == 1
        return reading

    def fail(self, method: str, error: BaseException) -> None:
        """Take a method out of the job."""
        self.failures[method] = status_of(error)
        runner = self.runners.pop(method, None)
        self.probes.pop(method, None)
        if runner is not None:
            self.kept.drop(runner)

    @contextlib.contextmanager
    def guard(self, method: str):
        """An exception inside takes this method out and leaves the others alone."""
        try:
            yield
        except Exception as error:
            self.fail(method, error)


def load_edit(job: dict) -> Edit:
    """The job's edit; a sample that is not here becomes a ``skipped`` job that says where it was looked for."""
    try:
        return registry.load(job["edit"]["name"], **job["dataset"])
    except MissingSample as error:
        raise JobFailure("skipped", str(error)) from error


def count_dense(zoo: Zoo, inputs: tuple):
    """``sige.macs.MacCount`` of one dense step, counted once a model and without data."""
    if zoo.dense_count is None:
        from sige import macs

        with torch.no_grad():
            zoo.dense_count = macs.count(
                _Forward(zoo.loader, zoo.without_data()), *(part.to("meta") for part in inputs)
            )
    return zoo.dense_count


class _Forward(torch.nn.Module):
    """A loader's ``forward`` as a module, for the counter."""

    def __init__(self, loader, module):
        super().__init__()
        self.loader, self.module = loader, module

    def forward(self, *inputs):
        """The loader's forward of one step."""
        return self.loader.forward(self.module, *inputs)


def load(model: dict, hardware: dict) -> tuple[Zoo, Runners]:
    """What a worker keeps from job to job: the loaded model, and the runners on it."""
    zoo = Zoo(model, hardware["device"])
    return zoo, Runners(zoo, hardware)


def measure(job: dict, zoo: Zoo, kept: Runners, tick: Callable[[], None] = lambda: None) -> Iterator[Reading | Bench]:
    """Yield the bench first, then every reading of every metric. Failures of methods stand in ``bench.failures``.

    A metric that raises ends the job: what it would say of the other methods is not known.
    """
    bench = Bench(job, zoo, kept, tick)
    yield bench
    bench.prepare()
    modules = {name: importlib.import_module(options["collect"]) for name, options in job["metrics"].items()}
    for name in sorted(modules, key=lambda name: getattr(modules[name], "ORDER", 50)):
        options = {key: value for key, value in job["metrics"][name].items() if key != "collect"}
        yield from modules[name].collect(bench, **options)
        tick()
