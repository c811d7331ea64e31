"""``import sige`` must cost nothing, and its names must be what they say however they are reached."""

import pytest

import sige

_HEAVY = ["diffusers", "transformers", "torchvision", "torchmetrics", "pandas", "matplotlib", "hydra", "wandb"]


_USES = {"import": "import sige", "policy": "sige.policy('incremental')", "session": "sige.Session"}


@pytest.fixture(scope="module")
def loaded(checkout, fresh_python):
    """Which heavy packages are there after each use, of one interpreter that makes them one after the other."""
    told = f"print(*sorted(set({_HEAVY!r}) & set(sys.modules)), sep=' ', end=';')"
    said = fresh_python("import sys\n" + "".join(f"{use}\n{told}\n" for use in _USES.values()), checkout)
    return dict(zip(_USES, said.split(";"), strict=False))


@pytest.mark.parametrize("use", _USES)
def test_loads_nothing_heavy(loaded, use):
    assert loaded[use] == ""


def test_import_alone_does_not_load_torch(checkout, fresh_python):
    assert fresh_python("import sys, sige; print('torch' in sys.modules)", checkout) == "False"


@pytest.mark.parametrize("name", sige.__all__)
def test_export_is_there(name):
    assert getattr(sige, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import sige", id="package_only"),
        pytest.param("from sige.policies import Policy; import sige", id="module_first"),
        pytest.param("import sige, sige.session", id="session_first"),
    ],
)
def test_policy_stays_a_function(checkout, fresh_python, code):
    """A module ``sige/policy.py`` would take the function's place as soon as anything imported it."""
    assert fresh_python(f"{code}\nprint(sige.policy('dense').name)", checkout) == "dense"


def test_modules_are_reached_without_importing_them(checkout, fresh_python):
    code = "import sige; print(sige.masks.__name__, sige.macs.__name__)"
    assert fresh_python(code, checkout) == "sige.masks sige.macs"


def test_unknown_name_is_said():
    with pytest.raises(AttributeError, match="module 'sige' has no attribute 'Sesion': it offers POLICIES, Policy, "):
        sige.Sesion


def test_names_are_listed():
    assert set(sige.__all__) <= set(dir(sige))
