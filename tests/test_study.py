"""scripts/study.py on a study whose answer is known."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import study as script

from dqn_ext.zoo.sweeps import open_storage
from tests.ending import error_of

SCRIPT = Path(__file__).parent.parent / "scripts" / "study.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("study")
    study = optuna.create_study(
        storage=open_storage(str(tmp_path / "s.log")),
        study_name="s",
        sampler=optuna.samplers.RandomSampler(seed=0),
        direction="maximize",
    )

    def objective(trial: optuna.Trial) -> float:
        matters = trial.suggest_float("matters", 0, 1)
        trial.suggest_float("does_not", 0, 1)
        trial.suggest_int("n_envs", 8, 8)
        if trial.number == 3:
            raise optuna.TrialPruned
        return 10 * matters

    study.optimize(objective, n_trials=40)
    study.enqueue_trial({"matters": 1.0})
    study.optimize(objective, n_trials=1)
    empty = optuna.create_study(storage=open_storage(str(tmp_path / "s.log")), study_name="empty")
    empty.ask()
    return tmp_path


def test_report(folder):
    command = [sys.executable, str(SCRIPT), "s.log", "--study-name", "s"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "trial 3: pruned" in process.stdout
    assert "The best is trial 40, 10.0:" in process.stdout
    settings = [line.split(" | ") for line in process.stdout.splitlines() if line.startswith("|")][2:]
    assert [setting[0] for setting in settings] == ["| matters", "| does_not"]  # n_envs was not searched
    assert settings[0][1] == "1"
    assert float(settings[0][2].rstrip(" |")) > 0.8
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("typo.log --study-name s", "Error: there is no journal typo.log."),
        ("s.log --study-name other", "Error: s.log has no study 'other'."),
        ("s.log --study-name empty", "Error: the study 'empty' has 0 complete trials, and two are the least."),
        ("sqlite:///s.db --study-name s", "--picture is needed where the study is in a database"),
    ],
)
def test_bad_input(folder, capsys, arguments, sentence):
    before = set(folder.iterdir())
    assert sentence in error_of(script.main, arguments, folder, capsys)
    assert set(folder.iterdir()) == before
