"""``python -m dqn_ext.hub check FOLDER_OR_REPO`` and ``python -m dqn_ext.hub push FOLDER REPO``.

Loading and preparing are commands of the Zoo's: ``rl_zoo3.load_from_hub`` and ``rl_zoo3.push_to_hub``.
"""

import argparse
import sys
from pathlib import Path

from dqn_ext.errors import InvalidInput
from dqn_ext.hub.card import check
from dqn_ext.hub.push import send


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m dqn_ext.hub")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="say what the leaderboard makes of a model, and what it lacks")
    checking.add_argument("folder_or_repo")
    pushing = commands.add_parser("push", help="send a folder that rl_zoo3.push_to_hub has prepared")
    pushing.add_argument("folder", type=Path)
    pushing.add_argument("repo_id")
    pushing.add_argument("-m", "--commit-message", default="Push agent")
    args = parser.parse_args()
    try:
        if args.command == "check":
            print(check(args.folder_or_repo))
        else:
            send(args.folder, args.repo_id, args.commit_message)
    except InvalidInput as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
