"""Lists the packages; everything else stands in pyproject.toml.

The folders beside ``sige`` keep their place in the checkout and land inside it in the wheel (``kernels`` as
``sige.kernels``). They are walked here so that a new subfolder needs no line in a list.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

FOLDERS = {
    "sige": "sige",
    "sige.kernels": "kernels",
    "sige.datasets": "datasets",
    "sige.analysis": "analysis",
    "sige.runs": "runs",
    "sige.conf": "conf",
}

package_dir = {name: folder for name, folder in FOLDERS.items() if Path(folder).is_dir()}
packages = [
    name
    for top, folder in package_dir.items()
    for name in [top, *(f"{top}.{sub}" for sub in find_namespace_packages(folder, exclude=["*__pycache__*"]))]
]

setup(packages=packages, package_dir=package_dir)
