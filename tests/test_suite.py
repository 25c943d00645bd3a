"""scripts/suite.py: games x algorithms x seeds on Ray, with real trainings, of which some are killed on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import suite as script

from dqn_ext.checkpoint import CheckpointFolder
from tests.ending import error_of
from tests.waiting import wait_until

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dqn-ext[suite]'")

SCRIPT = Path(__file__).parent.parent / "scripts" / "suite.py"


def start(arguments: str, zoo_flags: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), *arguments.split(), "-f", "suite", "--", *zoo_flags.split()]
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )


def checkpoint(run: Path) -> int:
    """The step of a run's newest checkpoint, 0 if there is none."""
    return max(CheckpointFolder(run / "checkpoint").steps(), default=0)


def trainings(folder: Path) -> list[psutil.Process]:
    """The Zoo's processes of a suite."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "dqn_ext.zoo" in words and any(word.startswith(str(folder)) for word in words):
            found.append(process)
    return found


def check_curves(run: Path, evaluations: list[int]) -> None:
    """No gap and no doubled row."""
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == evaluations
    for monitor in run.glob("*monitor.csv"):
        lines = monitor.read_text().splitlines()
        assert [line for line in lines if line.startswith(("#", "r"))] == lines[:2]
        times = [float(line.split(",")[2]) for line in lines[2:]]
        assert times
        assert (np.diff(times) > 0).all()


def test_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One training is killed and goes on, one starts anew; and what is finished is not trained again."""
    arguments = "--games CartPole-v1 --algos dqn ddqn --seeds 7 -n 4000 --cpus 0.5 --checkpoint-freq 200"
    zoo_flags = "--eval-freq 1000 --eval-episodes 1 -params learning_starts:200"
    left = tmp_path / "suite/runs/dqn-CartPole-v1-7/dqn/CartPole-v1_1/0.monitor.csv"
    left.parent.mkdir(parents=True)
    left.write_text("of a dqn that was killed")
    suite = start(arguments, zoo_flags, tmp_path)
    run = tmp_path / "suite/ddqn/CartPole-v1_7"  # as enjoy --exp-id 7 finds it
    wait_until(lambda: checkpoint(run) >= 400, suite)
    for process in trainings(tmp_path / "suite/runs/ddqn-"):
        process.kill()
    output = suite.communicate(timeout=300)[0]
    assert suite.returncode == 0, output
    assert "ddqn-CartPole-v1-7: Going on from step" in output
    assert "ddqn-CartPole-v1-7: Eval num_timesteps=4000" in output
    rows = json.loads((tmp_path / "suite/table.json").read_text())
    assert [(row["algo"], row["steps"], row["retries"], row["state"]) for row in rows] == [
        ("dqn", 4096, 0, "finished"),  # it collects 256 at a time
        ("ddqn", 4000, 1, "finished"),
    ]
    for row in rows:
        folder = tmp_path / "suite" / row["algo"] / "CartPole-v1_7"
        check_curves(folder, [1000, 2000, 3000, 4000])
        assert row["last"] == np.load(folder / "evaluations.npz")["results"][-1].mean()
        assert row["last"] <= row["best"]
    assert (tmp_path / "suite/results_CartPole-v1.png").stat().st_size > 1000

    # As if the suite had died when the run came to its end
    done = tmp_path / "suite/runs/ddqn-CartPole-v1-7"
    (done / "finished").unlink()
    before = (run / "evaluations.npz").stat().st_mtime
    flags = json.loads((done / "flags.json").read_text())
    script.train(script.Run(str(tmp_path / "suite"), "ddqn", "CartPole-v1", 7, tuple(flags)))
    assert (done / "finished").exists()
    assert (run / "evaluations.npz").stat().st_mtime == before

    other = f"{arguments.replace('4000', '5000')} -f suite -- {zoo_flags}"
    assert "holds a run with other flags (-n 4000" in error_of(script.main, other, tmp_path, capsys)


def test_pictures_of_a_game_with_a_slash_in_its_id(tmp_path: Path) -> None:
    run = tmp_path / "ddqn/ALE-Pong-v5_1"
    run.mkdir(parents=True)
    np.savez(run / "evaluations.npz", timesteps=[100, 200], results=[[-21.0], [-20.0]])
    script.plot(tmp_path, ["ddqn"], ["ALE/Pong-v5"], 200)
    assert (tmp_path / "results_ALE-Pong-v5.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_not_tried_again(tmp_path: Path) -> None:
    suite = start("--games CartPole-v1 --seeds 1 -n 200 --cpus 0.5", "-params gamma:2", tmp_path)
    output = suite.communicate(timeout=200)[0]
    assert suite.returncode == 1
    assert "Error: gamma must lie in [0, 1], not be 2." in output
    assert "not all runs have finished" in output
    assert len((tmp_path / "suite/runs/ddqn-CartPole-v1-1/attempts").read_text().splitlines()) == 1


@pytest.mark.slow
def test_settings_that_change_on_the_way(tmp_path: Path) -> None:
    """The half-trained agent of the old ones is not taken for the new ones'."""
    pack = tmp_path / "pack.yml"
    text = "CartPole-v1: {policy: MlpPolicy, n_timesteps: 4000, learning_starts: 100, gamma: 0.9}"
    pack.write_text(text)
    arguments = "--games CartPole-v1 --algos ddqn --seeds 1 -n 20000 --cpus 0.5 --checkpoint-freq 200 --retries 0"
    suite = start(arguments, f"-conf {pack}", tmp_path)
    run = tmp_path / "suite/ddqn/CartPole-v1_1"
    wait_until(lambda: checkpoint(run) >= 400, suite)
    for process in trainings(tmp_path / "suite"):
        process.terminate()
    suite.communicate(timeout=200)
    assert (run / "CartPole-v1.zip").exists()
    pack.write_text(text.replace("0.9", "0.8"))
    suite = start(arguments, f"-conf {pack}", tmp_path)
    output = suite.communicate(timeout=200)[0]
    assert suite.returncode == 1
    assert "gamma is 0.9 there and 0.8 here Give the suite another folder, -f." in output
    assert not (tmp_path / "suite/runs/ddqn-CartPole-v1-1/finished").exists()
    # With the old ones it goes on: nothing of the other run is left, for which it would be taken
    pack.write_text(text)
    suite = start(arguments, f"-conf {pack}", tmp_path)
    output = suite.communicate(timeout=200)[0]
    assert suite.returncode == 0, output
    assert "Going on from step" in output


@pytest.mark.slow
def test_a_killed_node(tmp_path: Path) -> None:
    """Two raylets on this machine; one is killed with all that runs on it, and the other one finishes the suite."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    suite = start(
        f"--games Breakout Pong --algos ddqn --seeds 1 2 -n 600 --address {cluster.address} --checkpoint-freq 50",
        "--eval-freq 200 --eval-episodes 1 --env-kwargs max_num_frames_per_episode:200 "
        "-params learning_starts:60 buffer_size:500",
        tmp_path,
    )
    runs = [tmp_path / f"suite/ddqn/{game}NoFrameskip-v4_{seed}" for game in ("Breakout", "Pong") for seed in (1, 2)]
    try:
        wait_until(lambda: all(checkpoint(run) >= 100 for run in runs), suite)
        before = {process.pid for process in trainings(tmp_path / "suite")}
        assert len(before) == 4
        cluster.remove_node(node, allow_graceful=False)
        # Its trainings do not outlive it
        wait_until(lambda: sum(psutil.pid_exists(pid) for pid in before) == 2, suite, timeout=20)
        output = suite.communicate(timeout=500)[0]
    finally:
        suite.kill()
        cluster.shutdown()
    print(output)
    assert suite.returncode == 0, output
    rows = json.loads((tmp_path / "suite/table.json").read_text())
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert [row["steps"] for row in rows] == [600] * 4
    retries = [row["retries"] for row in rows]
    assert sum(retries) == 2, retries
    assert output.count("Going on from step") == 2
    for run in runs:
        check_curves(run, [200, 400, 600])
