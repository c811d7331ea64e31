"""``kernels`` and ``datasets`` are also packages of other people: theirs and ours must be found side by side."""

import json

import pytest

_PRINT = """
import json, kernels, datasets, sige, sige.kernels, sige.datasets
print(json.dumps({
    "theirs": [kernels.STUB, datasets.STUB],
    "ours": [list(sige.kernels.__path__)[0], list(sige.datasets.__path__)[0]],
    "sige": sige.__file__,
}))
"""


_KINDS = ["checkout_from_root", "checkout_from_elsewhere", "editable_from_root", "editable_from_elsewhere", "wheel"]


@pytest.fixture(params=_KINDS)
def found(request, checkout, stubs, tmp_path, fresh_python):
    """What a fresh interpreter finds under each name, and the folder that ours should come from."""
    kind = request.param
    if kind == "checkout_from_root":
        return json.loads(fresh_python(_PRINT, checkout, [stubs], site=False)), checkout
    if kind == "checkout_from_elsewhere":
        return json.loads(fresh_python(_PRINT, tmp_path, [checkout, stubs], site=False)), checkout
    if kind == "wheel":
        unpacked = request.getfixturevalue("wheel")
        return json.loads(fresh_python(_PRINT, tmp_path, [unpacked, stubs], site=False)), unpacked / "sige"
    copy, installed = request.getfixturevalue("copied_checkout"), request.getfixturevalue("editable")
    code = f"import site; site.addsitedir({str(installed)!r})\n{_PRINT}"
    cwd = copy if kind == "editable_from_root" else tmp_path
    return json.loads(fresh_python(code, cwd, [stubs], site=False)), copy


def test_their_packages_are_theirs(found):
    assert found[0]["theirs"] == ["their kernels", "their datasets"]


def test_our_folders_are_ours(found):
    names, home = found
    assert names["ours"] == [str(home / "kernels"), str(home / "datasets")]


def test_sige_comes_from_the_same_place(found):
    names, home = found
    assert names["sige"] in {str(home / "__init__.py"), str(home / "sige" / "__init__.py")}


@pytest.mark.parametrize("folder", ["kernels", "datasets", "analysis", "runs", "conf"])
def test_top_folder_has_no_init(checkout, folder):
    """With one, a run from the root would shadow the packages of that name."""
    assert not (checkout / folder / "__init__.py").exists()
