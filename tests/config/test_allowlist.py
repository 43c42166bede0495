"""A configuration can only call allowed classes and functions, under any name."""

import sys

import pytest

from llm.config.allowlist import ALLOWED, locate, trusted_packages
from llm.config.errors import ConfigError

ATTACKS = [
    "builtins.eval",
    "builtins.exec",
    "eval",
    "os.system",
    "subprocess.Popen",
    "importlib.import_module",
    "pickle.loads",
    "hydra.utils.instantiate",
    "hydra.utils.get_object",
    # an allowed prefix that leads to another module
    "torch.load",
    "torch.hub.load",
    "torch.optim.optimizer.torch.load",
    "torch.optim.lr_scheduler.inf",
    "llm.config.os.system",
    "llm.config.allowlist.importlib.import_module",
    "llm.config.build.build",
    "llm.runs.subprocess.run",
    "llm.data.corpora.text.torch.load",
    "llm.hardware.torch.load",
    "llm.hardware.time.sleep",
    "lightning.pytorch.utilities.subprocess.Popen",
    "lightning.pytorch.trainer.connectors.accelerator_connector.os.system",
    # objects of other packages that a part's module has imported
    "llm.hardware.replace",
    "llm.hardware.dataclass",
    "llm.training.trainer.Path",
    "llm.training.trainer.partial",
    "llm.nn.norms.nn",
    # objects of an allowed package that a configuration may not name
    "lightning.pytorch.Trainer",
    "lightning.pytorch.seed_everything",
    "torchmetrics.functional.accuracy",
    "torch.optim.swa_utils.update_bn",
    "torch.optim.optimizer._use_grad_for_differentiable",
    # attributes of an allowed object
    "llm.nn.norms.LayerNorm.__init__",
    "llm.hardware.Hardware.__init__.__globals__",
    "llm.hardware.Hardware.resolve",
    "llm.nn.norms.__builtins__",
    "",
    ".",
    "llm",
    "llm.nn.",
]


@pytest.mark.parametrize("path", ATTACKS)
def test_objects_that_are_not_on_the_allowlist_are_refused(path):
    with pytest.raises(ConfigError):
        locate(path)


def test_refusing_imports_nothing_outside_the_allowed_packages(tmp_path, monkeypatch):
    (tmp_path / "intruder.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not on the allowlist"):
        locate("intruder.thing")
    assert "intruder" not in sys.modules


def test_every_object_reachable_by_one_name_is_allowed():
    """All objects found in the modules of the package are defined in an allowed package."""
    import llm.hardware
    import llm.nn.attention
    import llm.training.trainer

    for module in (llm.hardware, llm.nn.attention, llm.training.trainer):
        for name in vars(module):
            try:
                found = locate(f"{module.__name__}.{name}")
            except ConfigError:
                continue
            assert any(found.__module__.startswith(package) for package in ALLOWED), name


@pytest.mark.parametrize(
    "path",
    [
        "llm.nn.norms.RMSNorm",
        "llm.hardware.Hardware",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.LambdaLR",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "torchmetrics.classification.BinaryAccuracy",
    ],
)
def test_allowed_objects_are_located(path):
    assert locate(path).__name__ == path.rpartition(".")[2]


def test_misspelt_target_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"RMSNrom does not exist; did you mean RMSNorm\?"):
        locate("llm.nn.norms.RMSNrom")


def test_users_package_is_allowed_once_trusted(kit):
    with pytest.raises(ConfigError, match="add your own package to `trust`"):
        locate("kit.Norm")
    assert locate("kit.Norm", trust=[kit]).__name__ == "Norm"


@pytest.mark.parametrize("name", ["os", "subprocess", "nn", "Any", "Callable", "dataclass", "Oops"])
def test_trust_covers_only_what_the_package_defines(kit, name):
    with pytest.raises(ConfigError):
        locate(f"kit.{name}", trust=[kit])


@pytest.mark.parametrize(
    "package", ["os", "builtins", "subprocess", "torch", "lightning", "llm", "hydra", ""]
)
def test_trust_does_not_extend_to_checked_packages(package):
    with pytest.raises(ConfigError, match="cannot be trusted as a whole; wrap what you need"):
        trusted_packages([package])
