"""The packages of the wheel: it holds ``services`` and ``training`` below ``samclip/_bundled``.

Beside other packages, those two names might be those of an application. ``samclip.cli`` puts that
folder on the path of its own process.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "samclip": "client/samclip",
    "samclip_core": "samclip_core",
    "samclip._bundled.services": "services",
    "samclip._bundled.training": "training",
}

setup(
    package_dir=FOLDERS,
    packages=[
        package
        for name, folder in FOLDERS.items()
        for package in (name, *(f"{name}.{below}" for below in find_packages(folder)))
    ],
)
