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

    def of(record):
        """What the card must say of it."""
        scores = record["scores"]
        return [
            f"{np.mean(scores):.1f} +/- {np.std(scores):.1f} in 30 games",
            f"{record['steps']:,} steps, seed {record['seed']}",
            f"Scores: {', '.join(f'{score:g}' for score in sorted(scores))}.",
        ]

    assert any(all(words in card for words in of(record)) for record in records)

    command = next(line for line in card.splitlines() if "rl_zoo3.enjoy" in line).split()[1:]
    assert "Loading rl-trained-agents" in run_python(" ".join([*command, "-n", "50"]), cwd=ROOT).stdout  # in a window
