"""scripts/bench_learning.py: real runs of CartPole, killed on the way; records; the comparison."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import ale_py
import bench_learning
import gymnasium as gym
import numpy as np
import pytest
import torch as th
import trained_agent
from bench_learning import of_learning
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from dqn_ext import DDQN
from dqn_ext.checkpoint import CheckpointFolder
from tests.ending import error_of
from tests.waiting import wait_until

gym.register_envs(ale_py)

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_learning.py"
TRAINED_AGENT = SCRIPT.with_name("trained_agent.py")
RUN = "logs/learning/ddqn/ddqn/CartPole-v1_7"
FLAGS = "-- -params learning_starts:100 train_freq:16 gradient_steps:1"


def start(arguments: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments.split()],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(arguments: str, folder: Path) -> str:
    process = start(arguments, folder)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which both algorithms have learned CartPole for a moment, each with a kill."""
    folder = tmp_path_factory.mktemp("learning")
    for algo in ("dqn", "ddqn"):
        command = f"--games CartPole-v1 --algos {algo} --seeds 7 -n 3000 {FLAGS} checkpoint_freq:300"
        process = start(command, folder)
        checkpoints = CheckpointFolder(folder / f"logs/learning/{algo}/{algo}/CartPole-v1_7/checkpoint")
        wait_until(checkpoints.steps, process, timeout=200)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not list((folder / "logs").rglob(f"{algo}-*.json"))

        output = finish(command, folder)
        assert f"{algo}-CartPole-v1-7: Going on from" in output
    return folder


def test_records(folder):
    for algo in ("dqn", "ddqn"):
        record = json.loads((folder / f"logs/learning/records/{algo}-CartPole-v1-3000-7.json").read_text())
        assert (record["algo"], record["env"], record["seed"], record["n_timesteps"]) == (algo, "CartPole-v1", 7, 3000)
        assert f"-m dqn_ext.zoo train --algo {algo} --env CartPole-v1 --seed 7 -n 3000" in record["command"]
        assert str(folder) not in json.dumps(record)
        assert len(record["scores"]) == len(record["lengths"]) == 30
        assert record["scores"] == record["lengths"]  # of CartPole
        assert record["epsilon"] == pytest.approx(0.1 if algo == "ddqn" else 0.04)  # of the packaged entries
        assert record["versions"]["torch"]
        assert record["settings"]["env_kwargs"] == "{}"
        assert record["machine"].endswith(" cores")  # and no GPU
        curve = record["curve"]
        assert curve["steps"] == list(range(150, 3001, 150))  # the kill has left no gap and doubled nothing
        assert np.shape(curve["scores"]) == (20, 10)
        assert curve["protocol"] == "10 full games greedily"  # the Zoo's way, except on Atari and Minigrid
        assert 0 < curve["hours"][0] < curve["hours"][-1] <= record["hours"] < 0.1


def test_only_complete_records_of_the_protocol_are_drawn(folder, monkeypatch, capsys):
    records = folder / "logs/learning/records"
    good = json.loads((records / "ddqn-CartPole-v1-3000-7.json").read_text())
    others = {
        "cut": json.dumps(good)[:100],
        "unfinished": json.dumps({name: value for name, value in good.items() if name != "scores"}),
        "greedy": json.dumps({**good, "protocol": "greedy, 5 games"}),
        "short": json.dumps({**good, "n_timesteps": 100}),
        "few": json.dumps({**good, "scores": [500.0] * 3}),
        "stopped": json.dumps({**good, "steps": 1200}),
        "ddqn-other-1": json.dumps({**good, "seed": 1, "settings": {**good["settings"], "gamma": "0.5"}}),
        "ddqn-twice": json.dumps(good),
        "sticky": json.dumps({**good, "label": "x", "settings": {**good["settings"], "env_kwargs": "{'a': 1}"}}),
        "three": json.dumps({**good, "label": "y", "curve": {**good["curve"], "protocol": "3 full games greedily"}}),
        "zfree": json.dumps({**good, "seed": 2, "settings": {**good["settings"], "checkpoint_freq": "9"}}),
        "other_game": json.dumps({**good, "env": "Acrobot-v1"}),
    }
    for name, content in others.items():
        (records / f"{name}.json").write_text(content)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["bench_learning.py", "--games", "CartPole-v1", "--seeds", "-n", "3000"])
    bench_learning.main()
    output = capsys.readouterr().out
    for name in others:
        (records / f"{name}.json").unlink()
    assert "cut.json is left out: it lacks attempts, curve, env" in output
    assert "unfinished.json is left out: it lacks scores" in output
    assert "greedy.json is left out: it is of another protocol (greedy, 5 games)" in output
    assert "short.json is left out: it is of 100 steps" in output
    assert "few.json is left out: it is of another protocol" in output
    assert "stopped.json is left out: it ended after 1200 of its steps" in output
    assert "ddqn-other-1.json is left out: it differs in gamma from those before it" in output
    assert "ddqn-twice.json is left out: there is one of ddqn with seed 7 already" in output
    assert "sticky.json is left out: it differs in env_kwargs from those before it" in output
    assert "three.json is left out: its curve is of another protocol (3 full games greedily)" in output
    assert "No interquartile means: the scores of a human are not known for CartPole-v1." in output
    table = [line for line in output.splitlines() if line.startswith("| CartPole-v1")]
    assert len(table) == 3  # and zfree
    assert f"| {round(float(np.mean(good['scores'])), 1)} |" in table[0]
    assert "Left out of the hours, since interrupted or measured otherwise: " in output
    assert (folder / "logs/learning/learning_3000.png").read_bytes().startswith(b"\x89PNG")


def test_what_decides_the_course_of_learning():
    """Not where the replay memory lies, and how updates are executed."""
    settings = {"gamma": "0.9", "replay_buffer_kwargs": "{'priority_exponent': 0.5, 'store': 'compressed'}"}
    as_now = {**settings, "compile": "auto", "replay_buffer_kwargs": "{'store': 'auto', 'priority_exponent': 0.5}"}
    assert of_learning(settings) == of_learning(as_now)
    assert of_learning(settings) != of_learning({**as_now, "replay_buffer_kwargs": "{'priority_exponent': 0.6}"})
    assert of_learning(settings) != of_learning({**as_now, "replay_buffer_kwargs": "{'env': <object>}"})
    assert of_learning({"gamma": "0.9"}) != of_learning(settings)


def test_trained_agent(folder):
    """It plays as the run's does, by the Zoo's command, and is a fraction of its size."""
    record = "logs/learning/records/ddqn-CartPole-v1-3000-7.json"
    for _ in range(2):  # the second replaces the first
        command = [sys.executable, str(TRAINED_AGENT), RUN, "--record", record]
        subprocess.run(command, cwd=folder, check=True)
    final = folder / "rl-trained-agents/ddqn/CartPole-v1_1"
    assert list(final.parent.iterdir()) == [final]
    names = {"CartPole-v1.zip", "CartPole-v1", "evaluations.npz", "README.md"}
    assert {path.name for path in final.iterdir()} == names
    assert str(folder) not in (final / "CartPole-v1/args.yml").read_text()

    run = folder / RUN
    whole, slim = (DDQN.load(path / "CartPole-v1.zip", device="cpu") for path in (run, final))
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert (
        whole.predict(observations, deterministic=True)[0] == slim.predict(observations, deterministic=True)[0]
    ).all()
    assert whole.exploration_rate == slim.exploration_rate
    assert whole.policy.optimizer.state
    assert not slim.policy.optimizer.state
    assert 3 * (final / "CartPole-v1.zip").stat().st_size < (run / "CartPole-v1.zip").stat().st_size

    scores = json.loads((folder / record).read_text())["scores"]
    card = (final / "README.md").read_text()
    assert f"{np.mean(scores):.1f} +/- {np.std(scores):.1f} in 30 games" in card
    assert "seed 7" in card
    enjoy = next(line.split() for line in card.splitlines() if "rl_zoo3.enjoy" in line)
    flags = ["--no-render", "-n", "600"]
    played = subprocess.run([sys.executable, *enjoy[1:], *flags], cwd=folder, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert "Episode Reward" in played.stdout


def test_an_agent_with_images_is_small_enough(tmp_path):
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4"), 4)
    agent = DDQN("CnnPolicy", env, buffer_size=100, learning_starts=50, device="cpu")
    agent.learn(60)
    trained_agent.slim(agent)
    agent.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").stat().st_size < trained_agent.MOST_BYTES - 200_000
    loaded = DDQN.load(tmp_path / "agent.zip", env, buffer_size=100, device="cpu")
    images = th.randint(0, 256, (16, 4, 84, 84), dtype=th.uint8)
    assert th.equal(loaded.q_net(images), agent.q_net(images))
    assert th.equal(loaded.q_net_target(images), agent.q_net(images))
    loaded.learn(60)  # goes on, with networks of their own
    assert not th.equal(loaded.q_net(images), loaded.q_net_target(images))


def test_a_record_of_another_training(folder, capsys):
    record = json.loads((folder / "logs/learning/records/ddqn-CartPole-v1-3000-7.json").read_text())
    for name, value, sentence in (
        ("seed", 8, "has seed 7, and other.json is of 8."),
        ("steps", 5, "has steps 3008,"),
        ("settings", {**record["settings"], "gamma": "0.5"}, "has other settings than other.json: gamma."),
    ):
        (folder / "other.json").write_text(json.dumps({**record, name: value}))
        assert sentence in error_of(trained_agent.main, f"{RUN} --record other.json", folder, capsys)


def test_no_run_and_no_record(folder, capsys):
    record = "logs/learning/records/ddqn-CartPole-v1-3000-7.json"
    (folder / "list.json").write_text("[]")
    for arguments, sentence in [
        (f"{RUN} --record nothing.json", "Error: nothing.json is no record of bench_learning.py's: FileNotFoundError"),
        (f"{RUN} --record list.json", "Error: list.json is no record of bench_learning.py's: TypeError"),
        (f"nowhere --record {record}", "Error: nowhere is no finished run of CartPole-v1 with evaluations: it has no"),
    ]:
        assert error_of(trained_agent.main, arguments, folder, capsys).startswith(sentence)
    assert not list(folder.rglob("*.new"))


def test_interquartile_mean(capsys):
    """By hand: human-normalized scores 0.1, 0.2, 0.3, 0.4 of two games and two seeds; the middle half is 0.2, 0.3."""

    def record(game, seed, normalized):
        random, human = bench_learning.RANDOM_AND_HUMAN[game]
        score = random + normalized * (human - random)
        return {"label": "a", "env": f"{game}NoFrameskip-v4", "seed": seed, "scores": [score] * 30}

    records = [record("Pong", 1, 0.1), record("Pong", 2, 0.4), record("Qbert", 1, 0.3), record("Qbert", 2, 0.2)]
    envs = ["PongNoFrameskip-v4", "QbertNoFrameskip-v4"]
    (row,) = bench_learning.interquartile_means(records, envs)
    assert (row["label"], row["seeds"], row["games"], row["IQM"]) == ("a", 2, 2, 0.25)
    assert row["95% from"] is row["to"] is None  # two runs tell nothing of their spread
    # Of 0.1, 0.2, 0.2, 0.3, 0.4, 0.5 the middle half is 0.2 to 0.4; a seed that one game lacks is left out
    more = [*records, record("Pong", 3, 0.5), record("Qbert", 3, 0.2), record("Pong", 4, 0.9)]
    (row,) = bench_learning.interquartile_means(more, envs)
    assert (row["seeds"], row["IQM"]) == (3, 0.275)
    assert row["95% from"] < 0.275 < row["to"]
    assert "Left out of a's interquartile mean, since not all games have them: seeds [4]" in capsys.readouterr().out
    # A label that lacks a game is not compared
    assert bench_learning.interquartile_means(records[:2], envs) == []


def test_hours_are_of_one_machine():
    def record(label, game, seed, threads, attempts=1):
        fixed = {"env": f"{game}NoFrameskip-v4", "machine": "this one"}
        return {**fixed, "label": label, "seed": seed, "threads": threads, "attempts": attempts}

    records = [record("a", "Pong", 1, 2), record("a", "Pong", 2, 1), record("b", "Pong", 1, 1)]
    records += [record("b", "Pong", 2, 1, attempts=2), record("a", "Qbert", 1, 2)]
    timed, others = bench_learning.of_one_machine(records)
    assert others == ["a Pong 1", "b Pong 2"]  # another number of threads; interrupted
    assert timed["a"] == {"PongNoFrameskip-v4": [records[1]], "QbertNoFrameskip-v4": [records[4]]}
    assert timed["b"] == {"PongNoFrameskip-v4": [records[2]]}
    assert bench_learning.of_one_machine(records[3:4])[0] == {}
    # Two labels beside each other tell more than many runs of one
    more = [record("a", "Pong", seed, 2) for seed in (3, 4, 5)]
    assert bench_learning.of_one_machine(records[:3] + more)[0]["b"] == timed["b"]


def test_ctrl_c_makes_no_record(tmp_path):
    """Neither of dqn, which the Zoo would take to be finished, nor does the next run begin."""
    process = start(f"--games CartPole-v1 --algos dqn --seeds 1 2 -n 100000 --jobs 1 {FLAGS}", tmp_path)
    monitor = tmp_path / "logs/learning/dqn/dqn/CartPole-v1_1/0.monitor.csv"
    wait_until(lambda: monitor.exists() and len(monitor.read_text().splitlines()) > 20, process, timeout=200)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 130, output
    assert "was ended from outside (exit code -15)" in output
    assert not (tmp_path / "logs/learning/records").exists()
    assert not (tmp_path / "logs/learning/dqn/runs/dqn-CartPole-v1-1/finished").exists()
    assert not (tmp_path / "logs/learning/dqn/runs/dqn-CartPole-v1-2/attempts").exists()


def test_a_run_that_cannot_be_recorded(tmp_path):
    """It has no evaluations; the others go on."""
    zoo_flags = f"{FLAGS} --eval-freq -1"
    process = start(f"--games CartPole-v1 --algos ddqn --seeds 1 2 -n 200 {zoo_flags}", tmp_path)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1, output
    for seed in (1, 2):
        assert f"ddqn-CartPole-v1-{seed} has no record: FileNotFoundError(" in output
    assert "Error: logs/learning/records has no complete record of these games at 200 steps" in output


def test_what_has_been_recorded_before(folder, capsys, monkeypatch):
    """It is not run again, and that is said."""
    flags = f"{FLAGS} checkpoint_freq:300"
    monkeypatch.chdir(folder)
    command = f"bench_learning.py --games CartPole-v1 --algos ddqn --seeds 7 -n 3000 {flags}"
    monkeypatch.setattr(sys, "argv", command.split())
    bench_learning.main()
    record = "logs/learning/records/ddqn-CartPole-v1-3000-7.json"
    assert f"ddqn-CartPole-v1-7: recorded before, {record}" in capsys.readouterr().out


def test_what_has_been_recorded_by_another_command(folder, capsys):
    """It would not be run again, and be shown as if it were."""
    arguments = f"--games CartPole-v1 --algos ddqn --seeds 7 -n 3000 {FLAGS} gamma:0.5"
    output = error_of(bench_learning.main, arguments, folder, capsys)
    assert "ddqn-CartPole-v1-3000-7.json is of another command (python -m dqn_ext.zoo train" in output
    assert "give these runs a --label of their own, or leave seed 7 out of --seeds." in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            "--algos ppo --seeds 1 -n 3000",
            "--algos knows dqn, ddqn and qrdqn, whose agents have an epsilon, and not ppo",
        ),
        ("--seeds -n 3000", "Error: logs/learning/records has no complete record of these games at 3000 steps"),
        ("--seeds 1 -n 0", "error: -n and --jobs must be at least 1"),
        ("--seeds 1 -n 3000 --jobs 0", "error: -n and --jobs must be at least 1"),
        ("--label x --seeds 1 -n 3000", "--label names the runs of one algorithm"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, sentence):
    assert sentence in error_of(bench_learning.main, f"--games CartPole-v1 {flags}", tmp_path, capsys)
