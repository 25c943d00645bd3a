"""What a search has found: its trials, its best one, and which settings mattered.

    python scripts/study.py results/studies/pong.log --study-name pong

Draws, beside a journal or where ``--picture`` says, the trials' values and the importances of what was sampled, which
Optuna estimates from the complete trials; of few trials it cannot tell much.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from suite import table

from dqn_ext.zoo import register
from dqn_ext.zoo.sweeps import open_storage


def importances(study: optuna.Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """Of each setting that was sampled from more than one value, the greatest first; they sum to 1."""
    searched = [
        name
        for name in complete[0].params
        if len({trial.params.get(name) for trial in complete}) > 1 and all(name in trial.params for trial in complete)
    ]
    if not searched or len({trial.value for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()  # the default of Optuna 5; that of 4 needs scikit-learn
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=searched)


def draw(name: str, complete: list[FrozenTrial], weights: dict[str, float], picture: Path) -> None:
    """Values over the trials, and the importances as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    left.plot([trial.number for trial in complete], [trial.value for trial in complete], "o")
    left.set(title=f"{name}, {len(complete)} complete trials", xlabel="trial", ylabel="value")
    right.barh(list(reversed(weights)), list(reversed(weights.values())))
    right.set(title="what mattered", xlabel="importance")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    print(f"{picture} shows it.")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Print the tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", help="a journal file, *.log, or the URL of a database")
    parser.add_argument("--study-name", required=True)
    parser.add_argument("--picture", type=Path, help="beside the journal, if not given")
    args = parser.parse_args()
    is_journal = args.storage.endswith(".log")
    if not (is_journal or args.picture):
        parser.error("--picture is needed where the study is in a database")

    register()
    if is_journal and not Path(args.storage).exists():
        sys.exit(f"Error: there is no journal {args.storage}.")
    try:
        study = optuna.load_study(storage=open_storage(args.storage), study_name=args.study_name)
    except KeyError:
        sys.exit(f"Error: {args.storage} has no study {args.study_name!r}.")
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        sys.exit(f"Error: the study {args.study_name!r} has {len(complete)} complete trials, and two are the least.")

    print(f"{study.user_attrs.get('command', study.study_name)}\n")
    for trial in study.trials:
        value = "" if trial.value is None else f" {trial.value:.1f}"
        print(f"trial {trial.number}: {trial.state.name.lower()}{value}")
    print(f"\nThe best is trial {study.best_trial.number}, {study.best_value:.1f}:")
    weights = importances(study, complete)
    rows = [
        {"setting": name, "value": _short(study.best_params[name]), "importance": f"{weight:.2f}"}
        for name, weight in weights.items()
    ]
    print(table(rows) if rows else "All trials had the same settings, or the same value.")
    draw(args.study_name, complete, weights, args.picture or Path(args.storage).with_suffix(".png"))


if __name__ == "__main__":
    main()
