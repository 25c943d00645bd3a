"""What a user sees when an input cannot be used."""


class InvalidInput(ValueError):
    """One sentence that names the setting, its value and what is allowed.

    The Zoo's commands print the sentence alone, without a traceback (see :mod:`dqn_ext.zoo`).
    """
