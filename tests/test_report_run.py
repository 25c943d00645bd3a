"""scripts/report_run.py, the end of ``make train``: what it finds, and what it passes over."""

import pytest
import report_run

from tests.ending import error_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for algo, n_episodes in (("ddqn", 44), ("qrdqn", 1)):
        run = tmp_path / f"logs/{algo}/ALE-Pong-v5_1"
        run.mkdir(parents=True)
        (run / "ALE-Pong-v5.zip").touch()
        rows = "-20.0,3000,1.5\n" * n_episodes
        (run / "0.monitor.csv").write_text(f'#{{"t_start": 0, "env_id": "ALE/Pong-v5"}}\nr,l,t\n{rows}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "sentences"),
    [
        (
            "--env ALE/Pong-v5",
            ["The agent: logs/ddqn/ALE-Pong-v5_1/ALE-Pong-v5.zip", "44 episodes, the last 20 scored -20.0", "-w 11\n"],
        ),
        (
            "--env ALE/Pong-v5 --algo qrdqn -n 100",
            ["-m rl_zoo3.enjoy --algo qrdqn --env ALE/Pong-v5 -f logs\n", "1 episodes", "-w 1\n"],
        ),
        ("--env ALE/Pong-v5 -optimize", []),
    ],
)
def test_report(folder, monkeypatch, capsys, flags, sentences):
    monkeypatch.setattr("sys.argv", ["report_run.py", *flags.split()])
    report_run.main()
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in sentences)
    assert bool(said) == bool(sentences)


def test_no_agent(folder, capsys):
    error = error_of(report_run.main, "--env Acrobot-v1", folder, capsys)
    assert error == "No agent of ddqn for Acrobot-v1 below logs.\n"
