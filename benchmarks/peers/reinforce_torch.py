"""Train REINFORCE as in PyTorch's example on Gymnasium's CartPole for a number of steps; print a JSON line.

    python reinforce_torch.py STEPS

It follows pytorch/examples, reinforcement_learning/reinforce.py: the same network of 128 relu units with dropout, Adam,
discounted and standardised rewards to go, and one update per episode.
"""

import json
import sys

import gymnasium
import torch
from torch import nn, optim
from torch.distributions import Categorical

GAMMA = 0.99


def to_go(rewards: list[float]) -> torch.Tensor:
    """Return the discounted rewards to go, standardised to mean 0 and standard deviation 1."""
    returns, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + GAMMA * total
        returns.append(total)
    found = torch.tensor(returns[::-1])
    return (found - found.mean()) / (found.std() + torch.finfo(torch.float32).eps)


if __name__ == "__main__":
    budget = int(sys.argv[1])
    torch.manual_seed(0)
    env = gymnasium.make("CartPole-v1")
    policy = nn.Sequential(nn.Linear(4, 128), nn.Dropout(0.6), nn.ReLU(), nn.Linear(128, 2), nn.Softmax(dim=1))
    optimiser = optim.Adam(policy.parameters(), lr=1e-2)
    steps, episodes = 0, []
    while steps < budget:
        log_probs, rewards, is_over = [], [], False
        state, _ = env.reset(seed=0 if not episodes else None)
        while not is_over:
            choice = Categorical(policy(torch.from_numpy(state).float().unsqueeze(0)))
            action = choice.sample()
            log_probs.append(choice.log_prob(action))
            state, reward, terminated, truncated, _ = env.step(action.item())
            rewards.append(float(reward))
            is_over = terminated or truncated
        loss = -(torch.cat(log_probs) * to_go(rewards)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += len(rewards)
        episodes.append(sum(rewards))
    last = episodes[-20:]
    print(json.dumps({"steps": steps, "updates": len(episodes), "return": sum(last) / len(last)}))
