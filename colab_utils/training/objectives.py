"""The formulas of GRPO and PPO, on tensors with a row for each answer.

Sources: Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; Shao et al.
2024, "DeepSeekMath", for GRPO.
"""

from __future__ import annotations

import torch


def group_advantages(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """Return how much better each answer (rows,) is than the others to its prompt.

    `group` answers to a prompt follow one another. Their rewards minus their mean are
    divided by their standard deviation. A group of equal rewards has the advantages 0.
    """
    groups = rewards.view(-1, group)
    found = groups - groups.mean(1, keepdim=True)
    return (found / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def clipped_loss(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return PPO's loss of each token (rows, tokens).

    It grows no further once a token is more probable, by the factor 1 + clip, than when
    it was written, or less probable by 1 - clip: one step shall not change much.
    """
    ratio = (log_probs - old).exp()
    limited = ratio.clamp(1 - clip, 1 + clip)
    return -torch.min(ratio * advantages, limited * advantages)


def kl(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return an estimate of the KL divergence from the reference at each token.

    It has no bias, and is never negative. Source: Schulman 2020, "Approximating KL
    divergence", the estimator k3.
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def gae(rewards: torch.Tensor, values: torch.Tensor, decay: float) -> torch.Tensor:
    """Return the advantages (rows, tokens) of tokens with these rewards and values.

    Both are 0 outside of the answers. A token's TD error is its reward, plus the next
    value, minus its own value; its advantage adds up the errors from there on, each
    one `decay` times the one before. Source: Schulman et al. 2015, "Generalized
    Advantage Estimation", without discount.
    """
    found: list[torch.Tensor] = []
    following = last = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        td_error = rewards[:, t] + following - values[:, t]
        last = td_error + decay * last
        found.append(last)
        following = values[:, t]
    return torch.stack(found[::-1], 1)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and variance 1 where the mask is True, 0 elsewhere."""
    chosen = values[mask]
    return ((values - chosen.mean()) * (chosen.var() + 1e-8).rsqrt()).where(mask, 0)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return half the squared error of each value; one step moves it by `clip`."""
    limited = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (limited - returns) ** 2)
