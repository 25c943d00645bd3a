"""Policies of :class:`dqn_ext.DDQN`."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import CnnPolicy as DQNCnnPolicy
from stable_baselines3.dqn.policies import QNetwork

from dqn_ext.errors import InvalidInput
from dqn_ext.features import EXTRACTORS, NatureCNN


class ImageQNetwork(QNetwork):
    """SB3's Q-network, which hands images to this package's extractors as bytes: they scale them, cheaply."""

    compute_dtype = th.float32  # of the features extractor; what follows it is float32 always

    def extract_features(self, obs: Any, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Cf. :meth:`stable_baselines3.common.policies.BaseModel.extract_features`."""
        if not (self.normalize_images and type(features_extractor) in EXTRACTORS.values() and obs.dtype == th.uint8):
            return super().extract_features(obs, features_extractor)
        with th.autocast(obs.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != th.float32):
            return features_extractor(obs).float()


class CnnPolicy(DQNCnnPolicy):
    """SB3's ``CnnPolicy``, whose extractor may be given by name.

    A name fits into a YAML file and into a saved model as plain text, where a class would have to be pickled.

    :param features_extractor_class: ``"nature"``, ``"impala"`` or a class; the other arguments are SB3's
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        features_extractor_class: str | type[BaseFeaturesExtractor] = "nature",
        net_arch: list[int] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(features_extractor_class, str):
            if features_extractor_class not in EXTRACTORS:
                raise InvalidInput(
                    f"features_extractor_class must be a class or one of {sorted(EXTRACTORS)}, "
                    f"not {features_extractor_class!r}."
                )
            features_extractor_class = EXTRACTORS[features_extractor_class]
        if net_arch is None and features_extractor_class is NatureCNN:
            net_arch = []  # as SB3's CnnPolicy with its NatureCNN
        optimizer_kwargs = dict(optimizer_kwargs or {})
        other_ways = {"fused", "foreach", "differentiable"} & optimizer_kwargs.keys()
        if optimizer_class in (th.optim.Adam, th.optim.AdamW) and not other_ways:
            optimizer_kwargs["fused"] = True  # one pass over the parameters instead of many
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            features_extractor_class=features_extractor_class,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def make_q_net(self) -> QNetwork:
        """Cf. :meth:`stable_baselines3.dqn.policies.DQNPolicy.make_q_net`."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return ImageQNetwork(**net_args).to(self.device)
