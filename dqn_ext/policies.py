"""Policies of :class:`dqn_ext.DDQN`."""

from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import CnnPolicy as DQNCnnPolicy

from dqn_ext.errors import InvalidInput
from dqn_ext.features import EXTRACTORS


class CnnPolicy(DQNCnnPolicy):
    """SB3's ``CnnPolicy``, whose extractor may be given by name.

    A name fits into a YAML file and into a saved model as plain text, where a class would have to be pickled.

    :param features_extractor_class: ``"nature"``, ``"impala"`` or a class; the other arguments are SB3's
    """

    def __init__(
        self, *args: Any, features_extractor_class: str | type[BaseFeaturesExtractor] = "nature", **kwargs: Any
    ) -> None:
        if isinstance(features_extractor_class, str):
            if features_extractor_class not in EXTRACTORS:
                raise InvalidInput(
                    f"features_extractor_class must be a class or one of {sorted(EXTRACTORS)}, "
                    f"not {features_extractor_class!r}."
                )
            features_extractor_class = EXTRACTORS[features_extractor_class]
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(*args, **kwargs)
