"""The README's Python, as it stands there but for its budgets."""

import re
from pathlib import Path

from tests.zoo.conftest import run_python

README = Path(__file__).parent.parent / "README.md"
BUDGETS = {
    "learn(50_000)": "learn(300)",
    "learning_starts=10_000": "learning_starts=80",
    "learn(1_000_000)": "learn(160)",
}


def test_python(tmp_path):
    """One block after the other: the last one goes by the second one's environment."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    program = "\n".join(blocks)
    for written, tried in BUDGETS.items():
        assert program.count(written) == 1
        program = program.replace(written, tried)
    program = program.replace("model = QRDQN", "assert model._n_updates == 20\nmodel = QRDQN")
    program += "\nassert type(model.replay_buffer) is FrameReplayBuffer\n"
    (tmp_path / "program.py").write_text(program)
    run_python("program.py", cwd=tmp_path)
