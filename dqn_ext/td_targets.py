"""Temporal-difference targets: pure functions of tensors, one equation each.

Shapes: ``B`` transitions, ``A`` actions. Everything is float32 and lies on one device.
"""

import torch as th


def q_learning_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q_values_target: th.Tensor,
) -> th.Tensor:
    """DQN's target, ``y = r + (1 - done) * discount * max_a Q_target(s', a)`` (Mnih et al. 2015, algorithm 1).

    :param rewards: ``r``, or the discounted sum of ``n_steps`` rewards; (B, 1)
    :param dones: 1 where ``s'`` is terminal (a timeout is not), else 0; (B, 1)
    :param discounts: ``gamma``, or ``gamma ** n`` of each transition's own ``n``; a float or (B, 1)
    :param next_q_values_target: ``Q_target(s', .)``; (B, A)
    :return: (B, 1)
    """
    return _bootstrap(rewards, dones, discounts, next_q_values_target.max(dim=1, keepdim=True).values)


def double_q_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q_values_online: th.Tensor,
    next_q_values_target: th.Tensor,
) -> th.Tensor:
    """Double DQN's target (van Hasselt, Guez, Silver 2016, eq. 4; https://arxiv.org/abs/1509.06461).

    ``y = r + (1 - done) * discount * Q_target(s', argmax_a Q_online(s', a))``:
    the online network selects the action, the target network values it.

    :param rewards: ``r``, or the discounted sum of ``n_steps`` rewards; (B, 1)
    :param dones: 1 where ``s'`` is terminal (a timeout is not), else 0; (B, 1)
    :param discounts: ``gamma``, or ``gamma ** n`` of each transition's own ``n``; a float or (B, 1)
    :param next_q_values_online: the selector, ``Q_online(s', .)``; (B, A)
    :param next_q_values_target: the valuer, ``Q_target(s', .)``; (B, A)
    :return: (B, 1)
    """
    if next_q_values_online.shape != next_q_values_target.shape:
        raise ValueError(
            f"next_q_values_online and next_q_values_target must have one shape, not "
            f"{tuple(next_q_values_online.shape)} and {tuple(next_q_values_target.shape)}."
        )
    selected_actions = next_q_values_online.argmax(dim=1, keepdim=True)
    return _bootstrap(rewards, dones, discounts, next_q_values_target.gather(dim=1, index=selected_actions))


def clip_to_returns(targets: th.Tensor, reward_bound: float, gamma: float) -> th.Tensor:
    """Clip to the returns that are possible where no ``|r|`` exceeds ``reward_bound``: ``reward_bound / (1 - gamma)``.

    A value that has run away, bootstrapped from others that did, comes back to that (Andrychowicz et al. 2017,
    appendix A; https://arxiv.org/abs/1707.01495).

    :param targets: (B, 1)
    :param reward_bound: above 0
    :param gamma: of one step, also for returns of several; with 1 nothing is clipped
    :return: (B, 1)
    """
    if gamma == 1:
        return targets
    return_bound = reward_bound / (1 - gamma)
    return targets.clamp(-return_bound, return_bound)


def _bootstrap(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    # A (B,) reward would silently broadcast against (B, 1) into (B, B).
    if not rewards.shape == dones.shape == next_values.shape:
        raise ValueError(
            f"rewards, dones and next values must have one shape (B, 1), not "
            f"{tuple(rewards.shape)}, {tuple(dones.shape)} and {tuple(next_values.shape)}."
        )
    return rewards + (1 - dones) * discounts * next_values
