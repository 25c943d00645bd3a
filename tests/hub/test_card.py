"""Cards as the leaderboard reads them."""

import json

import pytest
import yaml

from dqn_ext.errors import InvalidInput
from dqn_ext.hub.card import MAX_CARD, check, draw_curve, parse_value, write_card, write_results
from dqn_ext.hub.metrics import episodes

GAME = "SpaceInvadersNoFrameskip-v4"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("512.50 +/- 80.25", (512.5, 80.25)),
        ("-21.00 +/- 0.00", (-21, 0)),
        ("3+/-4", (3, 4)),
        ("7", (7, 0)),
        (7.5, (7.5, 0)),
    ],
)
def test_values(value, expected):
    assert parse_value(value) == expected


@pytest.mark.parametrize("value", ["", "a +/- b", "1 +/- nan", "inf", None, ["1"], {"a": 1}, "512 ± 80"])
def test_values_that_the_leaderboard_cannot_read(value):
    with pytest.raises(InvalidInput, match="the score must read like"):
        parse_value(value)


def card(folder, mean, std, n_games, env_id=GAME, **env_kwargs):
    results = {
        "mean_reward": mean,
        "std_reward": std,
        "n_eval_episodes": n_games,
        "eval_datetime": "2026-11-21T12:00:00",
        "eval_seed": 0,
        "episode_rewards": [mean] * n_games,
        "algo": "ddqn",
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "exploration_rate": 0.01,
        "num_timesteps": 100,
        "seed": 1,
    }
    write_results(folder, results)
    write_card(folder, f"me/ddqn-{env_id}", results, {"gamma": 0.99}, {"dqn-ext": "0"})
    return check(str(folder))


def test_the_bar_and_luck(tmp_path):
    report = card(tmp_path, 300.0, 82.0, 10)
    assert report.score == 218
    assert "The course asks for 200 on SpaceInvadersNoFrameskip-v4: met" in str(report)
    assert "10 games leave this score to luck, about 65 either way." in str(report)
    assert "--n-eval-episodes 100" in str(report)
    assert "not met" in str(card(tmp_path, 300.0, 100.1, 10))
    # 100 games, and the bar out of their reach
    assert "luck" not in str(card(tmp_path, 300.0, 40.0, 100))
    assert "luck" in str(card(tmp_path, 300.0, 95.0, 100))
    assert "luck" not in str(card(tmp_path, 500.0, 0.0, 10, "CartPole-v1"))
    assert "course" not in str(card(tmp_path, 500.0, 0.0, 10, "CartPole-v1"))


def test_another_environment_is_said_so(tmp_path):
    card(tmp_path, 300.0, 82.0, 10, repeat_action_probability=0.25, obs_type="ram")
    text = (tmp_path / "README.md").read_text()
    flag = "--env-kwargs repeat_action_probability:0.25 'obs_type:'\"'\"'ram'\"'\"''"
    assert f"| Environment | {flag} |\n" in text
    assert f".zip {flag} -params" in text
    card(tmp_path, 300.0, 82.0, 10)
    assert "nvironment |" not in (text := (tmp_path / "README.md").read_text())
    assert ".zip -params" in text


def test_what_is_missing(tmp_path):
    report = card(tmp_path, 300.0, 80.0, 10)
    assert {what.split(",")[0] for what in report.missing} == {
        "replay.mp4",
        "agent.json",
        "agent.safetensors",
        "training.png",
        "config.yml",
        "args.yml",
        "train_eval_metrics.zip",
        "the model's zip",
    }
    text = (tmp_path / "README.md").read_text()

    def missing(edit):
        metadata = yaml.safe_load(text.split("---")[1])
        edit(metadata)
        (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n")
        return set(check(str(tmp_path)).missing) - set(report.missing)

    def metric(metadata):
        return metadata["model-index"][0]["results"][0]["metrics"][0]

    for edit, says in (
        (lambda m: m["tags"].remove(GAME), "the environment's id among the card's tags"),
        (lambda m: m["tags"].remove("reinforcement-learning"), "the tag reinforcement-learning"),
        (lambda m: m.pop("library_name"), "library_name: stable-baselines3"),
        (lambda m: m.pop("model-index"), "a score: model-index[0]"),
        (lambda m: metric(m).update(value="many"), "a score that the leaderboard can read"),
        (lambda m: metric(m).update(value="900.00 +/- 1.00"), "agreement: results.json says 300.00 +/- 80.00"),
    ):
        assert any(what.startswith(says) for what in missing(edit)), says


def test_a_curve_of_a_run_whose_machine_died(tmp_path):
    """Of the last episode half a row was written; lines of other lengths are none either."""
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n1,10,0.5\n2,20,1.5\n12.0,3')
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n3,30,1.0\n4,\n')
    assert episodes(tmp_path).tolist() == [[1, 10], [3, 30], [2, 20]]
    draw_curve(tmp_path, 1, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


HOSTILE_CARDS = [
    "---\n" + "\n" * MAX_CARD + "x",
    " " * MAX_CARD,
    "---\n" + "\n--- " * (MAX_CARD // 5) + "x",
    "---\na: !!python/object/apply:os.system ['touch marker']\n---\n",
    "---\n- 1\n---\n",
    "---\n" + "[" * 100_000 + "\n---\n",
    "no metadata",
    "---\na0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60))
    + "\n---\n",
    f"---\nmodel-index:\n- results:\n  - dataset: {{name: x}}\n    metrics: [{{value: 0x{'f' * 5000}}}]\n---\n",
    "---\ntags: 3\nmodel-index: 4\nlibrary_name: {}\n---\n",
    "---\n"
    + "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)])
    + "\nmodel-index:\n- results:\n  - dataset: {name: *a59}\n    metrics: [{value: *a59}]\n---\n",
]


@pytest.mark.parametrize("content", HOSTILE_CARDS)
def test_hostile_cards(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(content)
    (tmp_path / "results.json").write_text(json.dumps({"n_eval_episodes": "10", "mean_reward": {}}))
    report = check(str(tmp_path))
    assert report.score != report.score
    assert "Missing" in str(report)
    assert not (tmp_path / "marker").exists()


def test_neither_a_folder_nor_a_repository(tmp_path):
    with pytest.raises(InvalidInput, match="neither a folder nor a repository's id"):
        check(str(tmp_path / "a" / "b"))
