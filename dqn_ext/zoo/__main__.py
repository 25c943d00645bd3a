"""``python -m dqn_ext.zoo train --algo ddqn ...``: the Zoo's commands, with ddqn, where the start-up hook is off."""

import runpy
import sys

from dqn_ext.zoo import register

COMMANDS = (
    "train",
    "enjoy",
    "record_video",
    "record_training",
    "benchmark",
    "load_from_hub",
    "push_to_hub",
    "cli",
    "plots.plot_train",
    "plots.all_plots",
    "plots.plot_from_file",
)


def main() -> None:
    """Run one of :data:`COMMANDS`."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m dqn_ext.zoo COMMAND ..., where COMMAND is one of: {', '.join(COMMANDS)}")
    register()
    command = sys.argv.pop(1)
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
