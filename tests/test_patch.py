"""focal_cuda.patch: a library that trains with it trains as before, and is itself again afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from originals import original
from tolerance import PEER
from torch import Tensor, nn

import focal_cuda
from focal_cuda import compat

Step = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    focal_cuda.unpatch()


def curve(task: Callable[[], tuple[nn.Module, Step]]) -> list[float]:
    """The losses of a training from a fixed start."""
    torch.manual_seed(0)
    model, step = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def of_kornia() -> tuple[nn.Module, Step]:
    """A network that finds edges of shapes, with the loss that users find by kornia.losses."""
    losses = original("kornia.losses:")
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    images, masks = torch.randn(2, 3, 16, 16), torch.randint(0, 4, (2, 16, 16))
    criterion = losses.FocalLoss(alpha=0.25, reduction="mean")
    binary = losses.BinaryFocalLossWithLogits(alpha=0.6, reduction="mean")

    def step() -> Tensor:
        logits = model(images)
        return criterion(logits, masks) + binary(logits[:, :1], (masks == 0).float().unsqueeze(1))

    return model, step


def of_monai() -> tuple[nn.Module, Step]:
    """MONAI's U-Net with its Dice and focal loss, which has the focal loss under a name of its own module."""
    model = original("monai.networks.nets:UNet")(2, 1, 3, channels=(4, 8), strides=(2,))
    criterion = original("monai.losses:").DiceFocalLoss(to_onehot_y=True, softmax=True, alpha=0.25)
    images, masks = torch.randn(2, 1, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))
    return model, lambda: criterion(model(images), masks)


def of_torchvision() -> tuple[nn.Module, Step]:
    """RetinaNet, whose head imports the loss from another module, over a backbone of one layer."""
    detection = original("torchvision.models.detection:")
    anchors = original("torchvision.models.detection.anchor_utils:AnchorGenerator")(((16, 32),), ((1.0,),))
    backbone = nn.Conv2d(3, 8, 16, 16)
    backbone.out_channels = 8
    model = detection.RetinaNet(backbone, 5, anchor_generator=anchors, min_size=64, max_size=64).train()
    images = [torch.rand(3, 64, 64)]
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([2])}]
    return model, lambda: sum(model(images, targets).values())


TRAININGS = {"kornia": of_kornia, "monai": of_monai, "torchvision": of_torchvision}
trainings = pytest.mark.parametrize("library", TRAININGS)


@pytest.mark.filterwarnings("ignore")
@trainings
def test_trains_as_without(library: str) -> None:
    calls = []
    expected = curve(TRAININGS[library])
    with focal_cuda.patch(library), pytest.MonkeyPatch.context() as spied:
        for name in ("sigmoid_focal_loss", "softmax_focal_loss"):
            kernel = getattr(focal_cuda.functional, name)
            spy = lambda *a, kernel=kernel, **k: calls.append(kernel) or kernel(*a, **k)  # noqa: E731
            spied.setattr(focal_cuda.functional, name, spy)
        patched = curve(TRAININGS[library])
    assert calls, "the library used its own loss"
    assert patched == pytest.approx(expected, rel=PEER["rtol"])
    calls.clear()
    assert curve(TRAININGS[library]) == pytest.approx(expected, rel=PEER["rtol"]) and not calls


PLACES = {
    "kornia": ("kornia.losses:focal_loss", "kornia.losses.focal:BinaryFocalLossWithLogits"),
    "monai": ("monai.losses:FocalLoss", "monai.losses.focal_loss:FocalLoss", "monai.losses.dice:FocalLoss"),
    "torchvision": (
        "torchvision.ops:sigmoid_focal_loss",
        "torchvision.ops.focal_loss:sigmoid_focal_loss",
        "torchvision.models.detection.retinanet:sigmoid_focal_loss",
    ),
    "fvcore": ("fvcore.nn:sigmoid_focal_loss", "fvcore.nn.focal_loss:sigmoid_focal_loss_jit"),
    "timm": ("timm.loss:AsymmetricLossMultiLabel", "timm.loss.asymmetric_loss:AsymmetricLossSingleLabel"),
    "segmentation_models_pytorch": ("segmentation_models_pytorch.losses:FocalLoss",),
    "ultralytics": ("ultralytics.utils.loss:FocalLoss", "ultralytics.utils.loss:VarifocalLoss"),
    "transformers": ("transformers.loss.loss_for_object_detection:sigmoid_focal_loss",),
}


@pytest.mark.parametrize("library", PLACES)
def test_every_place_is_replaced_named_and_given_back(library: str) -> None:
    before = {place: original(place) for place in PLACES[library]}
    patched = focal_cuda.patch(library)
    for place in PLACES[library]:
        assert original(place) is not before[place] and original(place).__module__.startswith("focal_cuda.compat.")
        assert place.replace(":", ".") in patched.replaced and place.replace(":", ".") in repr(patched)
    focal_cuda.unpatch(library)
    assert {place: original(place) for place in PLACES[library]} == before


@pytest.mark.parametrize("undo", [lambda: focal_cuda.unpatch(), lambda: focal_cuda.unpatch("kornia")])
def test_a_call_lasts_until_unpatch(undo: Callable[[], None]) -> None:
    losses = original("kornia.losses:")
    own = losses.focal_loss
    focal_cuda.patch("kornia")
    assert losses.focal_loss is compat.kornia.focal_loss
    undo()
    assert losses.focal_loss is own
    undo()  # once more does nothing


def test_of_nested_patches_the_outermost_ends() -> None:
    losses = original("kornia.losses:")
    own = losses.focal_loss
    with pytest.raises(ZeroDivisionError), focal_cuda.patch("kornia"):
        with focal_cuda.patch("kornia"):
            assert losses.focal_loss is compat.kornia.focal_loss
        assert losses.focal_loss is compat.kornia.focal_loss
        raise ZeroDivisionError
    assert losses.focal_loss is own


# --- a library that stands for those that do not install anywhere -----------------------------------------------------


class Registry:
    """As OpenMMLab's: classes by name."""

    def __init__(self) -> None:
        self.module_dict: dict[str, type] = {}


@pytest.fixture
def mmseg(monkeypatch: pytest.MonkeyPatch, tmp_path) -> ModuleType:
    """A package with that name, the modules that count, and a registry."""
    for folder in ("mmseg", "mmseg/models", "mmseg/models/losses"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "mmseg/registry.py").write_text(f"from {__name__} import Registry\nMODELS = Registry()\n")
    home = tmp_path / "mmseg/models/losses/focal_loss.py"
    home.write_text(
        "from mmseg.registry import MODELS\nclass FocalLoss:\n    def __init__(self, gamma=3.0): ...\n"
        "MODELS.module_dict['FocalLoss'] = FocalLoss\n"
    )
    (tmp_path / "mmseg/late.py").write_text("from mmseg.models.losses.focal_loss import FocalLoss as Renamed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("mmseg.models.losses.focal_loss")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmseg"]:
        del sys.modules[name]


@pytest.mark.skipif("mmseg" in sys.modules, reason="the real one is there")
def test_registries_and_modules_that_load_later(mmseg: ModuleType) -> None:
    registry, own = sys.modules["mmseg.registry"].MODELS.module_dict, mmseg.FocalLoss
    with pytest.warns(UserWarning, match="mmseg's FocalLoss has other defaults.*: gamma"):
        patched = focal_cuda.patch("mmseg")
    late = importlib.import_module("mmseg.late")
    assert registry["FocalLoss"] is mmseg.FocalLoss is late.Renamed is compat.mmseg.FocalLoss
    assert "mmseg.registry.MODELS['FocalLoss']" in patched.replaced
    focal_cuda.unpatch("mmseg")
    assert registry["FocalLoss"] is mmseg.FocalLoss is late.Renamed is own


def test_unknown_libraries_are_told_the_known() -> None:
    for call in (focal_cuda.patch, focal_cuda.unpatch):
        with pytest.raises(ValueError, match=r"patch: expected one of .*kornia, .*torchvision.*, got 'caffe2'"):
            call("caffe2")


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apex" else find(name))
    with pytest.raises(ImportError, match=r"installed library, got 'apex', .*known are apex, .*torchvision.*compat"):
        focal_cuda.patch("apex")


def test_a_library_that_does_not_import_is_named(mmseg: ModuleType, tmp_path) -> None:
    del sys.modules["mmseg.models.losses.focal_loss"]
    (tmp_path / "mmseg/models/losses/focal_loss.py").write_text("raise RuntimeError('no operators')\n")
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"focal_loss to import, got RuntimeError: no operators; repair mmseg"):
        focal_cuda.patch("mmseg")
    assert not focal_cuda._patch._active
