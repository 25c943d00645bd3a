"""Says when a repair can go: each test looks at the fault itself, in what is installed."""

import importlib.util
import inspect
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import rl_zoo3
from huggingface_hub import ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from requests.exceptions import HTTPError

from dqn_ext.zoo.repairs import EDITS, SENTENCES

CAN_GO = "the fault is gone: this repair can go"


def source_of(module: str) -> str:
    package, _, name = module.rpartition(".")
    path = PathFinder.find_spec(name, importlib.util.find_spec(package).submodule_search_locations).origin
    return Path(path).read_text()


@pytest.mark.parametrize("module", EDITS)
def test_edits(module):
    old, new = EDITS[module]
    assert old in source_of(module), CAN_GO
    code = importlib.util.find_spec(module).loader.get_code(module)
    assert code == compile(source_of(module).replace(old, new), code.co_filename, "exec", dont_inherit=True)


def test_generate_metadata():
    assert "\ndef generate_metadata(" not in source_of("huggingface_sb3.push_to_hub"), CAN_GO
    module = importlib.import_module("huggingface_sb3.push_to_hub")
    metadata = module.generate_metadata("DDQN", "PongNoFrameskip-v4", 1.0, 0.5)
    assert type(metadata) is dict
    assert metadata["model-index"][0]["name"] == "DDQN"


def test_agents_from_the_hub():
    assert "zip_ref.extractall(log_path)" in source_of("rl_zoo3.load_from_hub"), CAN_GO
    for command in ("enjoy", "record_video", "utils"):
        assert "Loader=yaml.UnsafeLoader" in source_of(f"rl_zoo3.{command}"), CAN_GO


def test_missing_hub_file():
    assert not issubclass(EntryNotFoundError, HTTPError), CAN_GO
    assert "except HTTPError" in source_of("rl_zoo3.load_from_hub"), CAN_GO


def test_model_cards():
    with pytest.raises(KeyError):  # or the repair can go
        ModelCardData(model_name="a")["model-index"]
    assert 'model.card_data["model-index"]' in inspect.getsource(rl_zoo3.utils.get_hf_trained_models), CAN_GO


def test_requests():
    from importlib.metadata import requires

    assert not any(requirement.startswith("requests") for requirement in requires("rl_zoo3")), "our dependency can go"


def test_sentences():
    modules = ["train", "utils", "utils", "utils", "load_from_hub", "train", "exp_manager"]
    others = ["optuna.storages._in_memory", "stable_baselines3.common.utils"]
    sources = [*(f"rl_zoo3.{module}" for module in modules), *others]
    for sentence, module in zip(SENTENCES, sources, strict=True):
        assert sentence in source_of(module)
