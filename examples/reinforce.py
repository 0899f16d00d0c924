"""REINFORCE from scratch: the plain policy gradient in a single file.

The goal is a policy π_θ with a large expected return E_{τ~P_θ}[R(τ)], whose gradient is estimated from N episodes:

    ∇E[R(τ)] ≈ 1/N Σ_n Σ_t R(τ_n) ∇log π_θ(a_t|s_t)

Run it (about a minute on a CPU):

    python examples/reinforce.py                   weight every action by the return of its whole episode
    python examples/reinforce.py --reward-to-go    weight it only by the rewards that follow: less variance
"""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

NUM_EPISODES, MAX_STEPS = 16, 500  # CartPole-v1 truncates an episode after 500 steps
GAMMA, LEARNING_RATE, HIDDEN_SIZES = 0.99, 3e-3, (64, 64)


class Batch(NamedTuple):
    """Steps of N episodes [T, N], one episode per column. `valid` marks the actual steps; the rest is padding."""

    observation: np.ndarray
    action: np.ndarray
    valid: np.ndarray
    weight: np.ndarray  # Ψ_t, how strongly the action is encouraged


def initialise(key, sizes):
    """Return (weight, bias) of each layer. The last weights are small, so the initial policy is nearly uniform."""
    gains = [2**0.5] * (len(sizes) - 2) + [0.01]
    layers = zip(jax.random.split(key, len(gains)), gains, sizes, sizes[1:], strict=False)
    return [(jax.nn.initializers.orthogonal(g)(k, (i, o)), jnp.zeros(o)) for k, g, i, o in layers]


def logits(parameters, observation):
    """Apply the policy network: π_θ(a|s) = softmax(logits)_a."""
    *hidden, (last_weight, last_bias) = parameters
    for weight, bias in hidden:
        observation = jnp.tanh(observation @ weight + bias)
    return observation @ last_weight + last_bias


def log_probability(parameters, observation, action):
    """Return log π_θ(a|s)."""
    table = jax.nn.log_softmax(logits(parameters, observation))
    return jnp.take_along_axis(table, action[..., None], axis=-1)[..., 0]


def weigh(reward, gamma, reward_to_go):
    """Return Ψ_t = R_t = Σ_{t'≥t} γ^(t'−t) r_t', or Ψ_t = R(τ) = R_0 for all t. In padding, the reward is 0."""
    weight, following = np.zeros_like(reward), np.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        weight[t] = following = reward[t] + gamma * following  # R_t = r_t + γ R_{t+1}
    return weight if reward_to_go else np.repeat(weight[:1], len(reward), axis=0)


def loss(parameters, batch):
    """Return −mean of Ψ log π_θ(a|s). The optimiser minimises this loss and thereby maximises E[R].

    The mean is taken over steps, not over episodes as in the formula, which rescales the gradient but does not turn it.
    """
    terms = batch.weight * log_probability(parameters, batch.observation, batch.action)
    return -jnp.sum(terms * batch.valid) / jnp.sum(batch.valid)


@jax.jit
def act(parameters, observation, key):
    """Sample a ~ π_θ(·|s)."""
    return jax.random.categorical(key, logits(parameters, observation))


def collect(worlds, parameters, key):
    """Collect one whole episode in each environment; return observation, action, reward and valid.

    Whether an episode terminates (the pole falls) or is truncated (time is up), R sums the rewards collected.
    """
    shape = (MAX_STEPS, len(worlds))
    observation, action = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32)
    reward, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    now, running = np.stack([world.reset()[0] for world in worlds]), list(range(len(worlds)))
    for t, step_key in enumerate(jax.random.split(key, MAX_STEPS)):
        observation[t], action[t] = now, act(parameters, now, step_key)
        for n in list(running):
            now[n], reward[t, n], terminated, truncated, _ = worlds[n].step(int(action[t, n]))
            valid[t, n] = True
            if terminated or truncated:
                running.remove(n)
        if not running:
            return observation, action, reward, valid


def train(steps: int = 200_000, seed: int = 0, reward_to_go: bool = False):
    """Collect episodes and learn from them until all steps are used. Returns the mean return of each batch."""
    key = jax.random.key(seed)
    parameters = initialise(key, (4, *HIDDEN_SIZES, 2))
    worlds = [gymnasium.make("CartPole-v1") for _ in range(NUM_EPISODES)]
    for n, world in enumerate(worlds):
        world.reset(seed=seed * NUM_EPISODES + n)
    optimiser, gradient = optax.adam(LEARNING_RATE), jax.jit(jax.grad(loss))
    state, taken, returns = optimiser.init(parameters), 0, []
    while taken < steps:
        observation, action, reward, valid = collect(worlds, parameters, jax.random.fold_in(key, len(returns)))
        batch = Batch(observation, action, valid, weigh(reward, GAMMA, reward_to_go))
        updates, state = optimiser.update(gradient(parameters, batch), state)
        parameters = optax.apply_updates(parameters, updates)
        taken += int(valid.sum())
        returns.append(float(reward.sum(axis=0).mean()))
        print(f"step {taken:7,}   return {returns[-1]:6.1f}")
    return returns


if __name__ == "__main__":
    tyro.cli(train)
