"""What the wheel holds, and that it works away from the checkout."""

import hashlib
import shutil

import pytest

_SOURCES = {
    ".py",
    ".yaml",
    ".csv",
    ".html",
    ".j2",
    ".css",
    ".js",
    ".json",
    ".svg",
    ".png",
    ".npz",
    ".safetensors",
    ".metal",
}


@pytest.mark.parametrize("folder", ["sige", "kernels", "datasets", "analysis", "runs", "conf"])
def test_every_file_is_in_the_wheel(copied_checkout, wheel, folder):
    home = copied_checkout / folder
    source = {str(path.relative_to(home)) for path in home.rglob("*") if path.suffix in _SOURCES}
    inside = wheel / "sige" if folder == "sige" else wheel / "sige" / folder
    packed = {str(path.relative_to(inside)) for path in inside.rglob("*") if path.is_file()}
    assert source - packed == set()


def test_metal_kernels_are_those_that_were_tested(copied_checkout, wheel):
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (top / "kernels" / "mps").glob("*.metal")}
        for top in (copied_checkout, wheel / "sige")
    ]
    assert digests[0] and digests[0] == digests[1]


def test_nothing_lands_beside_sige(wheel):
    beside = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert beside == {"sige"}


def test_metadata_names_the_distribution(wheel):
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    assert "Name: sige-incremental" in metadata.read_text().splitlines()


def test_conf_is_found(wheel, tmp_path, fresh_python):
    code = "from sige.paths import conf_dir, project_root; print(conf_dir(), project_root())"
    assert fresh_python(code, tmp_path, [wheel], site=False) == f"{wheel / 'sige' / 'conf'} None"


def test_conf_is_found_in_an_editable_install(copied_checkout, editable, tmp_path, fresh_python):
    code = f"import site; site.addsitedir({str(editable)!r})\n"
    code += "from sige.paths import conf_dir, project_root; print(conf_dir(), project_root())"
    assert fresh_python(code, tmp_path, site=False) == f"{copied_checkout / 'conf'} {copied_checkout}"


def test_missing_conf_is_said(wheel, tmp_path, fresh_python):
    code = """
import pathlib, sige.paths as paths
paths.project_root.cache_clear()
paths._PACKAGE = pathlib.Path("/nowhere/sige")
try:
    paths.conf_dir()
except FileNotFoundError as error:
    print(error)
"""
    said = fresh_python(code, tmp_path, [wheel], site=False)
    assert said == "configuration folder /nowhere/sige/conf is missing: reinstall the package or restore it"


def test_engine_and_kernels_load(wheel, tmp_path, fresh_python):
    code = "import sige, sige.kernels.ops; print(sige.policy('incremental').name, sige.kernels.ops.__file__)"
    assert fresh_python(code, tmp_path, [wheel]) == f"incremental {wheel / 'sige' / 'kernels' / 'ops.py'}"


def test_foreign_pyproject_beside_the_package_is_not_ours(wheel, tmp_path, fresh_python):
    """Some packages drop their pyproject.toml into site-packages."""
    shutil.copytree(wheel / "sige", tmp_path / "sige")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "someone-else"\n')
    code = "import sige, sige.paths; print(sige.__file__, sige.paths.project_root(), len(sige.__path__))"
    assert fresh_python(code, tmp_path, site=False) == f"{tmp_path / 'sige' / '__init__.py'} None 1"
