"""What a user sees when an input cannot be used."""


class InvalidInput(ValueError):
    """One sentence that names the setting, its value and what is allowed.

    The Zoo's commands print the sentence alone, without a traceback (see :mod:`dqn_ext.zoo`).
    """


class Diverged(ValueError):
    """The loss is infinite or not a number: one sentence, printed as that of :class:`InvalidInput` is.

    A ``ValueError``, since the Zoo prunes the trial of a hyperparameter search that ends in one.
    """
