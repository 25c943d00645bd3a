"""The search space: what is sampled, what a trial keeps, and that its id gives it back."""

import optuna
import pytest
import yaml
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import NatureCNN

from dqn_ext import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.hyperparameters import argument_names, check_names, check_values
from dqn_ext.zoo.manager import read_rate
from dqn_ext.zoo.search_space import convert_ddqn_params, refine, sample_ddqn_params
from dqn_ext.zoo.sweeps import open_storage
from tests.zoo.conftest import run_python, run_several

VECTOR = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [256, 256]}}
IMAGES = {"policy": "CnnPolicy"}
STACKED = {**IMAGES, "frame_stack": 4, "replay_buffer_kwargs": {"store": "compressed", "priority_exponent": 0.5}}


def sample(entry, n_envs=1, n_trials=30, fixed=()):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n_trials):
        trial = study.ask()
        trial.entry, trial.fixed = entry, frozenset(fixed)
        yield trial, sample_ddqn_params(trial, 0, n_envs, {})


@pytest.mark.parametrize("entry", [VECTOR, IMAGES, STACKED, {}])
@pytest.mark.parametrize("n_envs", [1, 8])
def test_all_samples_are_valid_and_come_back(entry, n_envs):
    for trial, sampled in sample(entry, n_envs):
        check_names(sampled, argument_names(DDQN))
        check_values(sampled)
        again = convert_ddqn_params(trial.params)
        assert again.pop("n_envs") == n_envs
        assert refine(entry, again) == sampled


@pytest.mark.parametrize("entry", [VECTOR, IMAGES])
@pytest.mark.parametrize("n_envs", [1, 4, 6])
def test_gradient_steps_match_the_train_frequency(entry, n_envs):
    for trial, sampled in sample(entry, n_envs):
        transitions_per_update = 2 ** trial.params["transitions_per_update_pow"]
        assert transitions_per_update <= sampled["train_freq"] * n_envs
        assert sampled["gradient_steps"] == sampled["train_freq"] * n_envs // transitions_per_update
        assert transitions_per_update >= (2 if entry is IMAGES else 1)


def test_what_is_searched():
    names = {"learning_rate", "batch_size", "gamma", "n_steps", "target_update_interval", "train_freq"}
    names |= {"gradient_steps", "exploration_fraction", "policy_kwargs"}
    others = {"replay_buffer_kwargs": STACKED, "exploration_final_eps": VECTOR}
    for entry in (VECTOR, IMAGES, STACKED):
        samples = [sampled for _, sampled in sample(entry)]
        assert set(samples[0]) == names | {name for name, its_entry in others.items() if its_entry is entry}
        for name in names:
            assert len({str(sampled[name]) for sampled in samples}) > 1, name
        assert (min(sampled["target_update_interval"] for sampled in samples) < 200) == (entry is VECTOR)


def test_a_memory_of_the_users_has_its_own_steps():
    samples = [sampled for _, sampled in sample({**VECTOR, "replay_buffer_class": ReplayBuffer}, n_trials=3)]
    assert all("n_steps" not in sampled for sampled in samples)


def test_images_have_an_extractor_always():
    extractors = {sampled["policy_kwargs"]["features_extractor_class"] for _, sampled in sample(IMAGES)}
    assert extractors == {"nature", "impala"}


def test_what_the_user_chose_stays():
    entry = {
        "policy": "CnnPolicy",
        "policy_kwargs": {
            "features_extractor_class": NatureCNN,
            "features_extractor_kwargs": {"normalized_image": True},
            "optimizer_kwargs": {"eps": 1e-5},
        },
    }
    for trial, sampled in sample(entry, n_trials=5):
        kwargs = sampled["policy_kwargs"]
        assert kwargs["features_extractor_class"] is NatureCNN
        assert kwargs["optimizer_kwargs"] == {"eps": 1e-5}
        assert kwargs["features_extractor_kwargs"] == {
            "normalized_image": True,
            "features_dim": trial.params["features_dim"],
        }


@pytest.mark.parametrize("named", [{"features_extractor_class": "impala"}, {}])
def test_the_arguments_of_the_entrys_extractor_stay_its_own(named):
    kwargs = {**named, "features_extractor_kwargs": {"width": 2}}
    for trial, sampled in sample({**STACKED, "policy_kwargs": kwargs}, n_trials=8):
        assert sampled["policy_kwargs"].get("features_extractor_class") == named.get("features_extractor_class")
        features_dim = trial.params["features_dim"]
        assert sampled["policy_kwargs"]["features_extractor_kwargs"] == {"width": 2, "features_dim": features_dim}


@pytest.mark.parametrize("fixed", ["gamma", "gradient_steps", "policy_kwargs", "replay_buffer_kwargs", "batch_size"])
def test_what_the_command_line_fixes_is_not_searched(fixed):
    for trial, sampled in sample(STACKED, n_envs=8, n_trials=3, fixed=[fixed]):
        assert fixed not in sampled
        again = convert_ddqn_params(trial.params)
        del again["n_envs"]
        assert refine(STACKED, again) == sampled
    (_, everything), *_ = sample(STACKED, n_trials=1)
    trial, sampled = next(sample(STACKED, fixed=everything))
    assert (sampled, trial.params) == ({}, {"n_envs": 1})


def test_a_learning_rate_that_decays_does_so_in_trials():
    for trial, sampled in sample({**VECTOR, "learning_rate": SimpleLinearSchedule(1e-4)}, n_trials=3):
        rate = trial.params["learning_rate"]
        assert [sampled["learning_rate"](remaining) for remaining in (1, 0.5, 0)] == [rate, rate / 2, 0]
        again = refine({"learning_rate": "lin_1e-4"}, convert_ddqn_params(trial.params))["learning_rate"]
        assert again.startswith("lin_")
        assert float(again.removeprefix("lin_")) == rate


def test_priorities_are_searched_where_there_may_be_some():
    for _, sampled in sample(STACKED, n_trials=5):
        assert sampled["replay_buffer_kwargs"]["store"] == "compressed"
        assert 0 <= sampled["replay_buffer_kwargs"]["priority_exponent"] <= 0.7
    for entry in (VECTOR, IMAGES, {**STACKED, "replay_buffer_class": ReplayBuffer}):
        assert all("replay_buffer_kwargs" not in sampled for _, sampled in sample(entry, n_trials=3))


def test_dict_observations_take_single_steps():
    assert all("n_steps" not in sampled for _, sampled in sample({"policy": "MultiInputPolicy"}, n_trials=3))


STUDY = "--storage study.log --study-name s"


@pytest.mark.parametrize("env", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_optimize_and_train_the_trials(env, tmp_path):
    """Through the Zoo's command, trial 0 too, with an entry whose policy_kwargs the trial refines."""
    has_images = env != "CartPole-v1"
    pack = {
        env: {
            "policy": "CnnPolicy" if has_images else "MlpPolicy",
            "n_timesteps": 100,
            "learning_starts": 50,
            "learning_rate": 1e-3 if has_images else "lin_1e-3",
            "policy_kwargs": "dict(optimizer_kwargs=dict(eps=1e-5))",
        }
    }
    if has_images:
        pack[env].update(
            env_wrapper=["stable_baselines3.common.atari_wrappers.AtariWrapper"],
            frame_stack=4,
            n_envs=2,
            buffer_size=600,
            replay_buffer_kwargs="dict(store='compressed')",
        )
    (tmp_path / "pack.yml").write_text(yaml.dump(pack))
    # What is fixed is given again with the trial's id
    train = f"-m rl_zoo3.train --algo ddqn --env {env} -n 100 -conf pack.yml {STUDY}"
    train += " -params gamma:0.9 double_q:False vec_env_wrapper:None"
    run_python(f"{train} -optimize --n-trials 2 --eval-episodes 1 --no-optim-plots --seed 0", cwd=tmp_path)
    study = optuna.load_study(
        study_name="s",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))),
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]

    commands = [f"{train} --trial-id {number} --eval-freq -1 -f trial_{number}" for number in range(2)]
    run_several(commands, cwd=tmp_path)
    for trial in study.trials:
        folder = f"trial_{trial.number}"
        run = tmp_path / folder / "ddqn" / f"{env}_1"
        assert "vec_env_wrapper" not in (run / env / "config.yml").read_text()  # which enjoy would take for one
        model = DDQN.load(run / f"{env}.zip")
        expected = convert_ddqn_params(trial.params)
        assert model.n_envs == expected.pop("n_envs") == pack[env].get("n_envs", 1)
        assert model.train_freq.frequency == expected.pop("train_freq")
        rate = expected.pop("learning_rate")
        assert model.lr_schedule(1) == pytest.approx(rate)
        assert model.lr_schedule(0.5) == pytest.approx(rate if has_images else rate / 2)
        assert (model.gamma, model.double_q) == (0.9, False)
        assert "gamma" not in expected
        for name, value in expected.pop("policy_kwargs").items():
            assert model.policy_kwargs[name] == value
        if has_images:
            assert model.replay_buffer_kwargs == {"store": "compressed", **expected.pop("replay_buffer_kwargs")}
        for name, value in expected.items():
            assert getattr(model, name) == value, name
        # the entry's own part of policy_kwargs is still there
        assert model.policy.optimizer.param_groups[0]["eps"] == 1e-5


def test_a_trial_that_is_not_there(tmp_path):
    train = f"-m rl_zoo3.train --algo ddqn --env CartPole-v1 {STUDY}"
    run_python(f"{train} -n 100 -optimize --n-trials 1 --eval-episodes 1 --no-optim-plots -f sweep", cwd=tmp_path)
    study = optuna.load_study(study_name="s", storage=open_storage(str(tmp_path / "study.log")))
    study.ask()  # and dies
    cases = [
        (f"{train} --trial-id 7", "The storage 'study.log' has no trial 7 of a study 's'."),
        (f"{train} --trial-id -1", "The storage 'study.log' has no trial -1 of a study 's'."),
        (f"{train} --trial-id 1", "Trial 1 of the study 's' was over before it had hyperparameters."),
        (f"{train} --trial-id 0 --storage typo.log", "There is no journal 'typo.log'."),
        (f"{train.replace(STUDY, '')} --trial-id 0", "--trial-id needs --storage and --study-name"),
    ]
    processes = run_several([f"{command} -f nothing" for command, _ in cases], cwd=tmp_path, check=False)
    for (_, sentence), process in zip(cases, processes, strict=True):
        assert process.returncode == 1
        assert f"Error: {sentence}" in process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.log", "sweep"]
    # Of another game it is taken, as somebody may want that
    other = run_python(f"{train.replace('CartPole', 'Acrobot')} -n 100 --eval-freq -1 --trial-id 0", cwd=tmp_path)
    assert "Warning: the study 's' has env 'CartPole-v1', and this run 'Acrobot-v1'." in other.stdout
    assert "the study 's' has algo" not in other.stdout


def test_settings_that_do_not_go_together_are_passed_over(tmp_path):
    (tmp_path / "pack.yml").write_text(
        yaml.dump({"CartPole-v1": {"policy": "MlpPolicy", "n_timesteps": 60, "buffer_size": 40}})
    )
    run_python(
        f"-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 60 -conf pack.yml {STUDY} -optimize --n-trials 8 "
        "--eval-episodes 1 --no-optim-plots --seed 1",
        cwd=tmp_path,
    )
    trials = optuna.load_study(study_name="s", storage=open_storage(str(tmp_path / "study.log"))).trials
    fits = [2 ** trial.params["batch_size_pow"] <= 40 for trial in trials]
    assert [trial.state.name for trial in trials] == ["COMPLETE" if fit else "PRUNED" for fit in fits]
    assert {True, False} == set(fits)


@pytest.mark.parametrize(("text", "rate"), [("1e-4", 1e-4), ("0.5", 0.5), ("lin_1e-4", "lin_1e-4")])
def test_learning_rates_in_words(text, rate):
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "lin_fast", "lin_0", "lin_-1e-3", "foo_1e-3", "step_1_2", "-1", "nan", ""])
def test_words_that_are_no_learning_rate(text):
    with pytest.raises(InvalidInput, match=f"learning_rate must be a number above 0.*{text!r}"):
        read_rate(text)
