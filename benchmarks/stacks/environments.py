"""The virtual environments of the other stacks, in the cache folder, with pinned packages.

None of these packages is one of glomjax's own.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from glomjax.errors import UserError
from glomjax.files import cache_dir

# {environment: (packages, packages installed without what they ask for)}
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "keras": (
        ("tensorflow-cpu==2.15.1", "numpy==1.26.4", "pillow==13.0.0"),
        (
            "keras-cv-attention-models==1.4.3",
            "ftfy==6.3.1",
            "regex==2026.11.19",
            "tqdm==4.70.1",
            "wcwidth==0.9.4",
        ),
    ),
    "torch": (
        (
            "torch==2.13.0",
            "numpy==2.4.6",
            "pillow==13.0.0",
            "pyyaml==6.0.4",
            "safetensors==0.8.0",
            "huggingface_hub==2.4.0",
            "onnx==1.23.2",
            "onnxscript==0.7.2",
        ),
        ("timm==1.0.31",),  # asks for torchvision, which its networks do not need
    ),
    "onnxruntime": (("onnxruntime==1.32.0", "numpy==2.4.6"), ()),
}


def set_up(environment: str) -> None:
    """Makes the environment, unless it is there with these very packages."""
    folder = cache_dir("benchmarks") / environment
    wanted, alone = PACKAGES[environment]
    done = folder / "packages.txt"
    listed = "\n".join((*wanted, *alone))
    if done.is_file() and done.read_text() == listed:
        print(f"{environment}: already in {folder}")
        return
    print(f"{environment}: installing into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    commands = [[_python(), "-m", "venv", str(folder)], [*pip, *wanted]]
    commands += [[*pip, "--no-deps", *alone]] if alone else []
    # With PYTHONPATH pip would take other packages for installed ones.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in commands:
        if subprocess.run(command, env=env).returncode:
            raise UserError(f"the environment {environment!r} failed at: {' '.join(command)}")
    done.write_text(listed)


def python_of(environment: str) -> pathlib.Path:
    """The environment's interpreter. Raises UserError where it has not been set up."""
    folder = cache_dir("benchmarks") / environment
    if not (folder / "packages.txt").is_file():
        raise UserError(
            f"the environment {environment!r} is not in {folder}; make it with "
            "`python benchmarks/compare.py --setup`, or leave its stacks out of --stacks"
        )
    return folder / "bin" / "python"


def _python() -> str:
    """A Python 3.11, the last that TensorFlow 2.15 runs on."""
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise UserError("TensorFlow 2.15 needs Python 3.11; put a python3.11 on the PATH")
    return found
