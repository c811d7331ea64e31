"""The torchvision hook: against stand-ins for torch and torchvision, and against the installed ones."""

import pytest

_TORCH = """
import types
loads = {loads}
class _Namespace: pass
namespace = _Namespace()
def _load(path):
    if not loads: raise OSError(path)
    namespace.nms = namespace.qnms = len
ops = types.SimpleNamespace(torchvision=namespace, load_library=_load)
declared = []
class _Library:
    def __init__(self, namespace, kind): self.head = namespace + " " + kind
    def define(self, schema): declared.append(self.head + " " + schema)
library = types.SimpleNamespace(Library=_Library)
"""


@pytest.fixture(params=[pytest.param(True, id="fits"), pytest.param(False, id="does_not_fit")])
def stand_ins(request, tmp_path):
    """A folder with a ``torch`` that can load torchvision's library or cannot, and a ``torchvision`` that has one."""
    (tmp_path / "torch.py").write_text(_TORCH.format(loads=request.param))
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("import torch")
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"")
    return request.param, tmp_path


def test_schemas_are_declared_only_where_needed(stand_ins, checkout, fresh_python):
    fits, folder = stand_ins
    code = "import sige, torchvision, torch; print(*torch.declared, sep='|')"
    said = fresh_python(code, checkout, [folder], site=False)
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    missing = "" if fits else f"torchvision FRAGMENT nms{signature}|torchvision FRAGMENT qnms{signature}"
    assert said == missing


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("import sige; print('torch' in sys.modules, hooks())", "False 1", id="waits_without_torch"),
        pytest.param("import sige; sige.torchvision_shim.install(); print(hooks())", "1", id="installed_once"),
        pytest.param("import sige, torchvision; print(hooks())", "0", id="gone_after_use"),
        pytest.param("import torchvision, sige; print(hooks())", "0", id="not_installed_when_too_late"),
    ],
)
def test_hook(stand_ins, checkout, fresh_python, code, said):
    hooks = "import sys\ndef hooks(): return sum('torchvision' in type(f).__module__ for f in sys.meta_path)\n"
    assert fresh_python(hooks + code, checkout, [stand_ins[1]], site=False) == said


def test_without_torchvision_the_error_is_pythons_own(checkout, fresh_python):
    code = "import sige\ntry: import torchvision\nexcept ModuleNotFoundError as error: print(error)"
    assert fresh_python(code, checkout, site=False) == "No module named 'torchvision'"


def test_installed_packages_that_need_torchvision_load(checkout, fresh_python):
    """One interpreter for all, because each of these imports takes seconds."""
    code = "import sige, lpips, torchmetrics, torchvision.transforms as t; print(t.Resize(8).size)"
    assert fresh_python(code, checkout) == "8"
