"""scripts/report_run.py, the end of ``make train``: what it finds, and what it passes over."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "report_run.py"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--env ALE/Pong-v5", "The agent: logs/ddqn/ALE-Pong-v5_1/ALE-Pong-v5.zip"),
        ("--env ALE/Pong-v5 --algo qrdqn -n 100", "-m rl_zoo3.enjoy --algo qrdqn --env ALE/Pong-v5 -f logs"),
        ("--env ALE/Pong-v5 -optimize", ""),
        ("--env Acrobot-v1", "No agent of ddqn for Acrobot-v1 below logs."),
    ],
)
def test_report(tmp_path, flags, sentence):
    for algo in ("ddqn", "qrdqn"):
        run = tmp_path / f"logs/{algo}/ALE-Pong-v5_1"
        run.mkdir(parents=True)
        (run / "ALE-Pong-v5.zip").touch()
        (run / "0.monitor.csv").write_text('#{"t_start": 0, "env_id": "ALE/Pong-v5"}\nr,l,t\n-20.0,3000,1.5\n')
    command = [sys.executable, str(SCRIPT), *flags.split()]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert sentence in process.stdout + process.stderr
    assert process.returncode == (1 if "Acrobot" in flags else 0)
    assert ("1 episodes" in process.stdout) == ("-optimize" not in flags and "Acrobot" not in flags)
