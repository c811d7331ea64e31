"""A whole session in a folder: saved so that no crash loses what was there, loaded only when every byte is as it was.

    session.json                 the manifest: version, policy, which files, their sizes and digests
    step-0003-<save>.safetensors what one step remembers
    common-<save>.safetensors    what steps share, and what the caller added

Every save writes new files beside those of the one before, then puts the new manifest in the old one's place in one move of the
file system, then removes the old files. Until that move the folder holds the earlier session, after it the new one.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path

import torch

from sige.errors import StorageError
from sige.state import coding, files

FORMAT, VERSION = "sige session", 2
_MANIFEST = "session.json"


def save(folder, steps, settings, extra=None):
    """Write ``steps`` (StepMemory each), ``settings`` (policy and such, by name) and ``extra`` to a folder, crash-safely.

    StorageError when something cannot be stored or the disk is full; the folder then holds what it held before.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made ({error.strerror or error}): choose another folder") from error
    mark, written = uuid.uuid4().hex[:8], {}

    def write(name, tensors, note):
        name = f"{name}-{mark}.safetensors"
        size, digest = files.write_tensors(folder / name, tensors, json.dumps(note))
        written[name] = {"bytes": size, "sha256": digest}
        return name

    try:
        common = coding.Encoder()
        shared = {coding.identity(tensor): common.encode(tensor)["tensor"] for tensor in _shared(steps)}
        added = {"extra": common.encode(extra, "extra"), "settings": common.encode(settings, "settings")}
        parts = [write("common", common.tensors, added)]
        for number, memory in enumerate(steps):
            encoder = coding.Encoder({key: f"common {name}" for key, name in shared.items()})
            note = coding.encode_step(memory, encoder)
            parts.append(write(f"step-{number:04d}", encoder.tensors, note))
        _put_manifest(folder, mark, {"format": FORMAT, "version": VERSION, "parts": parts, "files": written})
    except BaseException:
        for name in written:
            (folder / name).unlink(missing_ok=True)
        raise
    for old in folder.glob("*-????????.safetensors"):
        if old.name not in written:
            old.unlink(missing_ok=True)


def _shared(steps):
    """Tensors that more than one step remembers, such as projections of the text."""
    seen, shared = {}, {}
    for number, memory in enumerate(steps):
        for entry in memory.entries.values():
            for tensor in entry.tensors():
                key = coding.identity(tensor)
                if seen.setdefault(key, number) != number:
                    shared[key] = tensor
    return list(shared.values())


def _put_manifest(folder, mark, manifest):
    """Write the manifest aside and move it into place."""
    aside = folder / f"{_MANIFEST}.{mark}"
    try:
        with open(aside, "x") as file:
            json.dump({**manifest, "digest": _digest(manifest)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)  # the files' names are on the disk before the manifest that names them
        os.replace(aside, folder / _MANIFEST)
        _sync_folder(folder)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(
            f"{folder / _MANIFEST} could not be written ({error.strerror or error}): free some disk space or choose another folder"
        ) from error


def _sync_folder(folder):
    if os.name == "posix":
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def manifest_of(folder):
    """The verified manifest of a saved session. StorageError when there is none, it was altered, or its version is not ours."""
    path = Path(folder) / _MANIFEST
    if not path.is_file():
        raise StorageError(f"{folder} holds no saved session: there is no {_MANIFEST} in it")
    try:
        manifest = json.loads(path.read_text())
        claimed, version, form = manifest.pop("digest", None), manifest.get("version"), manifest.get("format")
    except (ValueError, AttributeError) as error:
        raise StorageError(f"{path} is truncated or was altered: it cannot be read") from error
    if form != FORMAT or version != VERSION:
        raise StorageError(
            f"{path} is of {form!r} version {version!r}, this release reads {FORMAT!r} version {VERSION}"
        )
    if claimed != _digest(manifest):
        raise StorageError(f"{path} was altered: its digest is not the one that it was saved with")
    return manifest


def settings_of(folder):
    """The settings that a saved session was made with; only the manifest and one file are read. StorageError as :func:`load`."""
    manifest = manifest_of(folder)
    name = manifest["parts"][0]
    _verify(Path(folder) / name, manifest["files"][name])
    common, note = _open(Path(folder) / name, lambda tensor: tensor)
    return coding.decode(note["settings"], common)


def load(folder, place=lambda tensor: tensor):
    """Verify and open a saved session: (iterator of its steps, settings, extra).

    Tensors are the files, mapped into memory; ``place`` makes of each what is wanted in its stead, step by step as they are asked
    for. StorageError naming the file that is missing, truncated or altered.
    """
    folder = Path(folder)
    manifest = manifest_of(folder)
    for name, was in manifest["files"].items():
        _verify(folder / name, was)
    common, note = _open(folder / manifest["parts"][0], place)
    known = {f"common {name}": tensor for name, tensor in common.items()}

    def steps():
        for name in manifest["parts"][1:]:
            tensors, step = _open(folder / name, place)
            yield coding.decode_step(step, {**known, **tensors})

    return steps(), coding.decode(note["settings"], common), coding.decode(note["extra"], common)


def _open(path, place):
    tensors, note = files.map_tensors(path)
    return {name: place(tensor) for name, tensor in tensors.items()}, json.loads(note)


def _verify(path, was):
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path} is missing from the saved session: save it again") from error
    if size != was["bytes"]:
        what = "truncated" if size < was["bytes"] else "too long"
        raise StorageError(f"{path} is {what}: it has {size} bytes, {was['bytes']} were saved; save the session again")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != was["sha256"]:
            raise StorageError(f"{path} was altered: its digest is not the one that it was saved with")


def fingerprint(model):
    """What tells a model from another: its class, and a digest of its tensors' names, shapes, dtypes and a few values of each."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta and tensor.numel():
            flat = tensor.detach().reshape(-1)
            chosen = flat[:: max(1, len(flat) // 16)][:16]
            digest.update(chosen.to(torch.float64).cpu().numpy().tobytes())
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"
