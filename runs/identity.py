"""The identity of a run: a hash of its resolved configuration and of everything else that makes its numbers.

Parts: the configuration, the code (engine, kernels, data sets, and those measuring files that the job names), library
versions, weights, data, and for jobs with timed metrics the machine. Two jobs with one identity give one number.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
from pathlib import Path

from sige.runs import environment
from sige.runs.rows import canonical

_ALWAYS = (
    "sige.runs.measure",
    "sige.runs.worker",
    "sige.runs.rows",
    "sige.runs.models.zoo",
    "sige.runs.methods",
    "sige.runs.metrics",
    "sige.runs.quiet",
    "sige.analysis.stats",
    "sige.analysis.image_errors",
)
_SUFFIXES = {".py", ".cpp", ".cu", ".metal", ".csv", ".json"}
_TIMED = {"latency", "time_share", "roofline", "transfer", "edit_times", "sequence"}


def short(text: str | bytes) -> str:
    """Twelve hexadecimal digits of SHA-256."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:12]


@functools.cache
def file_digest(path: Path) -> str:
    """Digest of a file; of a Python file without its comments and its layout, which make no number."""
    data = path.read_bytes()
    return short(ast.dump(ast.parse(data))) if path.suffix == ".py" else short(data)


@functools.cache
def _tree(package: str) -> dict[str, str]:
    """Digests of all source files below a package, by path relative to it."""
    found = {}
    for root in importlib.util.find_spec(package).submodule_search_locations:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in _SUFFIXES and "__pycache__" not in path.parts:
                found[f"{package.replace('.', '/')}/{path.relative_to(root)}"] = file_digest(path)
    return found


@functools.cache
def _engine() -> dict[str, str]:
    """Digests of engine, kernels and data sets; of ``sige`` its own folder only, its path reaches beyond."""
    import sige

    home = Path(sige.__file__).parent
    inside = {"kernels", "datasets", "analysis", "runs", "conf"}  # in a wheel these lie in the same folder
    engine = {
        f"sige/{path.relative_to(home)}": file_digest(path)
        for path in sorted(home.rglob("*"))
        if path.suffix in _SUFFIXES
        and "__pycache__" not in path.parts
        and path.relative_to(home).parts[0] not in inside
    }
    return {**engine, **_tree("sige.kernels"), **_tree("sige.datasets")}


def code_files(job: dict) -> dict[str, str]:
    """Digest by file of the code that makes this job's numbers."""
    named = [job["model"]["loader"]]
    named += getattr(importlib.import_module(job["model"]["loader"]), "PARTS", ())
    named += [options["runner"] for options in job["methods"].values()]
    named += [options["collect"] for options in job["metrics"].values()]
    files = dict(_engine())
    for module in (*_ALWAYS, *named):
        files[module] = file_digest(Path(importlib.util.find_spec(module).origin))
    return files


def is_timed(job: dict) -> bool:
    """Whether the job's numbers depend on the machine."""
    return bool(_TIMED & set(job["metrics"]))


def identify(job: dict, weights: str, data: str) -> dict:
    """The parts of a job's identity; ``run_id`` is the hash of all others, ``files`` has the digest of each file."""
    files = code_files(job)
    parts = {
        "config": short(job["config"]),
        "code": short(canonical(files)),
        "libraries": environment.libraries(),
        "weights": weights,
        "data": data,
        "machine": job["hardware"]["machine"] if is_timed(job) else "any",
    }
    return {"run_id": short(canonical(parts)), **parts, "files": files}


def difference(before: dict, after: dict) -> str:
    """What makes two identities of one configuration differ, in words."""
    told = []
    for part in ("weights", "data", "machine"):
        if before.get(part) != after[part]:
            told.append(f"{part} {before.get(part)} -> {after[part]}")
    for name, version in after["libraries"].items():
        if before.get("libraries", {}).get(name) != version:
            told.append(f"{name} {before.get('libraries', {}).get(name)} -> {version}")
    if before.get("code") != after["code"]:
        old, new = before.get("files", {}), after["files"]
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        told.append(f"code changed: {', '.join(changed[:2])}{more}" if changed else "code changed")
    return "; ".join(told) or "its record is gone"
