"""The agents in rl-trained-agents: the Zoo's command plays them, and their cards say what their records say."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.conftest import run_python

ROOT = Path(__file__).parent.parent.parent
FOLDERS = sorted((ROOT / "rl-trained-agents/ddqn").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_trained_agent(folder):
    env = folder.name.removesuffix("_1")
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 8_000_000
    card = (folder / "README.md").read_text()
    records = [json.loads(path.read_text()) for path in (ROOT / "results/learning").glob(f"*{env}*.json")]
    said = [f"{np.mean(record['scores']):.1f} +/- {np.std(record['scores']):.1f} in 30 games" for record in records]
    assert any(sentence in card for sentence in said)

    command = next(line for line in card.splitlines() if "rl_zoo3.enjoy" in line).split()[1:]
    assert "Loading rl-trained-agents" in run_python(" ".join([*command, "--no-render", "-n", "50"]), cwd=ROOT).stdout
