"""Policies of :class:`dqn_ext.DDQN`: SB3's, with dueling networks, and this package's extractors by name."""

import inspect
from typing import Any, NamedTuple, TypeGuard

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn import policies
from torch import nn

from dqn_ext.errors import InvalidInput
from dqn_ext.features import EXTRACTORS, ImpalaCNN, NatureCNN
from dqn_ext.hyperparameters import check_arguments


class DuelingHead(nn.Module):
    """Q-values as a state's value and its actions' advantages, each computed by a stream of its own.

    ``Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')`` (Wang et al. 2016, eq. 9; https://arxiv.org/abs/1511.06581).
    The paper also scales the gradient that both streams hand down by 1 / sqrt(2), which is left out here.

    :param features_dim: units of the features
    :param n_actions: number of actions
    :param net_arch: units of each stream's hidden layers
    :param activation_fn: after each of them
    :param in_halves: each stream has one half of the features to itself, instead of sharing all of them
    """

    def __init__(
        self, features_dim: int, n_actions: int, net_arch: list[int], activation_fn: type[nn.Module], in_halves: bool
    ) -> None:
        super().__init__()
        self.in_halves = in_halves
        stream_dim = features_dim // 2 if in_halves else features_dim
        self.value = nn.Sequential(*create_mlp(stream_dim, 1, net_arch, activation_fn))
        self.advantages = nn.Sequential(*create_mlp(stream_dim, n_actions, net_arch, activation_fn))

    def forward(self, features: th.Tensor) -> th.Tensor:
        """:return: Q-values, (B, A), from features, (B, ``features_dim``)"""
        of_value, of_advantages = features.chunk(2, dim=1) if self.in_halves else (features, features)
        advantages = self.advantages(of_advantages)
        return self.value(of_value) + advantages - advantages.mean(dim=1, keepdim=True)


class Prepared(NamedTuple):
    """Images as :meth:`QNetwork.prepare` has them."""

    images: th.Tensor


class QNetwork(policies.QNetwork):
    """SB3's Q-network, which may be dueling, and hands images to this package's extractors as bytes: they scale them.

    :param dueling: value and advantages in two streams
    """

    compute_dtype = th.float32  # of the features extractor; what follows it is float32 always

    def __init__(self, *args: Any, dueling: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dueling = dueling
        if dueling:
            n_actions, in_halves = int(self.action_space.n), not self.net_arch and _is_ours(self.features_extractor)
            head = DuelingHead(self.features_dim, n_actions, self.net_arch, self.activation_fn, in_halves)
            self.q_net = nn.Sequential(head)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "dueling": self.dueling}

    def set_training_mode(self, mode: bool) -> None:
        """Cf. SB3's, which walks over all modules, and which the loop asks for the same mode several times a step."""
        if self.training != mode:
            super().set_training_mode(mode)

    def prepare(self, obs: Any) -> Any:
        """Do what does not depend on the weights, once for all networks of this architecture that see ``obs``.

        :return: in place of ``obs`` for this network's ``forward``, and for another's
        """
        extractor = self.features_extractor
        if not (self.normalize_images and _is_ours(extractor) and obs.dtype == th.uint8):
            return obs
        with self._autocast(obs.device):
            return Prepared(extractor.prepare(obs))

    def extract_features(self, obs: Any, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Cf. :meth:`stable_baselines3.common.policies.BaseModel.extract_features`."""
        if not _is_ours(features_extractor):
            return super().extract_features(obs, features_extractor)
        if isinstance(obs, Prepared):
            with self._autocast(obs.images.device):
                return features_extractor.forward_prepared(obs.images).float()
        if not (self.normalize_images and obs.dtype == th.uint8):
            return super().extract_features(obs, features_extractor)
        with self._autocast(obs.device):
            return features_extractor(obs).float()

    def _autocast(self, device: th.device) -> th.autocast:
        return th.autocast(device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != th.float32)


def _is_ours(features_extractor: BaseFeaturesExtractor) -> TypeGuard[NatureCNN | ImpalaCNN]:
    return type(features_extractor) in EXTRACTORS.values()


class MlpPolicy(policies.DQNPolicy):
    """SB3's ``MlpPolicy``.

    :param dueling: value and advantages in two streams, see :class:`DuelingHead`; each has hidden layers ``net_arch``
    """

    def __init__(self, *args: Any, dueling: bool = False, **kwargs: Any) -> None:
        if not isinstance(dueling, bool):
            raise InvalidInput(f"dueling must be True or False, not {dueling!r}.")
        self.dueling = dueling
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> QNetwork:
        """Cf. :meth:`stable_baselines3.dqn.policies.DQNPolicy.make_q_net`."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return QNetwork(**net_args, dueling=self.dueling).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "dueling": self.dueling}


class MultiInputPolicy(MlpPolicy, policies.MultiInputPolicy):
    """SB3's ``MultiInputPolicy``, with ``dueling`` as :class:`MlpPolicy` has it."""


class CnnPolicy(MlpPolicy, policies.CnnPolicy):
    """SB3's ``CnnPolicy``, whose extractor may be given by name.

    A name fits into a YAML file and into a saved model as plain text, where a class would have to be pickled.

    :param features_extractor_class: ``"nature"``, ``"impala"`` or a class; the other arguments are SB3's
    :param dueling: value and advantages in two streams. Without a ``net_arch`` the extractor's last layer is the
        streams' hidden one, half of it each's; by default twice as large then, as in the paper
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        features_extractor_class: str | type[BaseFeaturesExtractor] = "nature",
        features_extractor_kwargs: dict[str, Any] | None = None,
        net_arch: list[int] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        dueling: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(features_extractor_class, str):
            if features_extractor_class not in EXTRACTORS:
                raise InvalidInput(
                    f"features_extractor_class must be a class or one of {sorted(EXTRACTORS)}, "
                    f"not {features_extractor_class!r}."
                )
            features_extractor_class = EXTRACTORS[features_extractor_class]
        is_ours = features_extractor_class in EXTRACTORS.values()
        if net_arch is None and is_ours:
            net_arch = []  # they end in a hidden layer, as SB3's NatureCNN
        features_extractor_kwargs = dict(features_extractor_kwargs or {})
        if is_ours:
            check_arguments(features_extractor_kwargs, features_extractor_class, features_extractor_class.__name__)
        if dueling and not net_arch and is_ours:
            default = inspect.signature(features_extractor_class).parameters["features_dim"].default
            features_dim = features_extractor_kwargs.setdefault("features_dim", 2 * default)
            if features_dim % 2:
                raise InvalidInput(
                    f"features_dim must be even with dueling, each stream has half of it, not {features_dim!r}."
                )
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
            features_extractor_kwargs=features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            dueling=dueling,
            **kwargs,
        )
