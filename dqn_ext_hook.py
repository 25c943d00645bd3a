"""Start-up hook: when rl_zoo3 is imported, and not before, register DDQN with it.

Runs at every start of the interpreter, from ``dqn_ext.pth``: it imports nothing that is not loaded already.
``DQN_EXT_NO_HOOK=1`` switches it off.
"""

import os
import sys


class _ZooFinder:
    """Lets rl_zoo3 be found as ever, and registers DDQN once it has been loaded."""

    _searching = False

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "rl_zoo3" or self._searching:
            return None
        self._searching = True
        try:
            from importlib.util import find_spec

            spec = find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader):  # type: ignore[no-untyped-def]
        exec_module = loader.exec_module

        def exec_and_register(module):  # type: ignore[no-untyped-def]
            exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            try:
                from dqn_ext.zoo import register

                register()
            except Exception as error:
                # The Zoo's own algorithms must not suffer
                print(f"dqn-ext could not register ddqn with rl_zoo3: {error}", file=sys.stderr)

        loader.exec_module = exec_and_register


if os.environ.get("DQN_EXT_NO_HOOK", "0") in ("", "0"):
    sys.meta_path.insert(0, _ZooFinder())  # type: ignore[arg-type]
