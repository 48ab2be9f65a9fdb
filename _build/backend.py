"""PEP 517 backend: setuptools', plus one rule. torch is a build requirement only where the environment that
is installed into has none; a plain requirement would download a second torch into the isolated build. Which
torch it is does not matter to the result: the stable ABI makes the same binary from any torch >= 2.11."""

import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

sys.path.insert(0, str(Path(__file__).resolve().parent))

import config  # noqa: E402


def _torch_requirement():
    if config.find_torch([*sys.path, *config.torch_search_path()]):
        return []
    return ["torch>=" + ".".join(map(str, config.MINIMUM_TORCH))]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
