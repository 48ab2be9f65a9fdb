"""Importing the package where it cannot work: one sentence with the remedy, and no half-registered operators."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import focal_cuda

PACKAGE = Path(__file__).parent.parent / "focal_cuda"


def run_in(cwd: Path, *arguments: str, with_torch: bool = True) -> subprocess.CompletedProcess:
    """A fresh interpreter, where only `cwd` has the package."""
    torch_from = [*sysconfig.get_paths().values(), *(p for p in sys.path if "-packages" in p)] if with_torch else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), *torch_from])}
    # -S: an editable installation hooks into the import system and would lend its extension.
    return subprocess.run([sys.executable, "-S", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def import_error(code: str, cwd: Path) -> str:
    """The message of the ImportError that `code` raises."""
    program = f"try:\n    {code}\nexcept ImportError as error:\n    print(error)\nelse:\n    print('imported')\n"
    done = run_in(cwd, "-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def copy_without_extension(tmp_path: Path) -> Path:
    """A folder with the package's Python files alone, found before the installed package."""
    shutil.copytree(PACKAGE, tmp_path / "focal_cuda", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_missing_extension_names_the_remedy(copy_without_extension: Path) -> None:
    message = import_error("import focal_cuda", copy_without_extension)
    assert "focal_cuda._C did not load" in message
    assert "pip install" in message and "make build" in message and "python -m focal_cuda.doctor" in message


def test_broken_extension_names_cause_and_remedy(copy_without_extension: Path) -> None:
    (copy_without_extension / "focal_cuda" / "_C.py").write_text(
        "raise ImportError('undefined symbol: aoti_torch_new')"
    )
    message = import_error("import focal_cuda", copy_without_extension)
    assert "undefined symbol: aoti_torch_new" in message and "make build" in message


def test_old_torch_is_named_before_anything_loads(copy_without_extension: Path) -> None:
    message = import_error("import torch; torch.__version__ = '2.10.1'; import focal_cuda", copy_without_extension)
    assert message.startswith("focal_cuda: expected torch >= 2.11, got 2.10.1; upgrade torch. ")
    assert "python -m focal_cuda.doctor" in message


def test_a_device_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert focal_cuda.is_available("cpu") and not focal_cuda.is_available("mps")
    monkeypatch.setattr(focal_cuda._ops, "DEVICES", {"meta"})
    for name in ("sigmoid_focal_loss", "softmax_focal_loss"):
        with pytest.raises(
            NotImplementedError,
            match=rf"{name}: expected logits on .*\(meta\), got cpu; .*reference.{name}.*focal_cuda\.doctor",
        ):
            getattr(focal_cuda, name)(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
