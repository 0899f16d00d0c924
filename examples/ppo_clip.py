"""PPO from scratch: generalised advantage estimation and the clipped ratio, in one file.

Each batch is used for several epochs. After the first update, the policy π_θ differs from the policy μ that acted, so
the weights are corrected by the ratio ρ = π_θ(a|s)/μ(a|s). Moving ρ outside [1−ε, 1+ε] brings no further gain:

    Loss = −1/B Σ min(ρ A, clip(ρ, 1−ε, 1+ε) A),   A_t = Σ_b (γλ)^b δ_{t+b},   δ_t = r_t + γ V(s_{t+1}) − V(s_t)

Run it (about a minute on a CPU):   python examples/ppo_clip.py --steps 100000 --seed 0
"""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from gymnasium.wrappers import RecordEpisodeStatistics

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES, SIZES = 8, 128, 4, 4, (4, 64, 64, 2)
GAMMA, LAMBDA, EPSILON, ENTROPY_COEFFICIENT, LEARNING_RATE = 0.99, 0.95, 0.2, 0.01, 1e-3


def initialise(key, sizes, last_gain):
    """Return (weight, bias) of each layer. Weights are orthogonal, with gain √2 in the hidden layers."""
    gains = [2**0.5] * (len(sizes) - 2) + [last_gain]
    layers = zip(jax.random.split(key, len(gains)), gains, sizes, sizes[1:], strict=False)
    return [(jax.nn.initializers.orthogonal(g)(k, (i, o)), jnp.zeros(o)) for k, g, i, o in layers]


def network(layers, x):
    """Apply the layers, with tanh between them and nothing after the last."""
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def log_probability(parameters, observation, action):
    """Return log π_θ(a|s) and the entropy of π_θ(·|s)."""
    table = jax.nn.log_softmax(network(parameters["actor"], observation))
    return jnp.take_along_axis(table, action[..., None], axis=-1)[..., 0], -jnp.sum(jnp.exp(table) * table, axis=-1)


def generalised_advantage(reward, terminated, truncated, values, next_values):
    """Return A_t = δ_t + γλ A_{t+1}, [T, N]. `next_values` is V of the true successor, even at an episode's end."""
    # Only after termination is the future worth 0. An episode that is truncated could have continued, so V counts.
    delta = reward + GAMMA * next_values * ~terminated - values
    advantage, following = np.zeros_like(delta), np.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        going_on = ~(terminated[t] | truncated[t])  # the row after an end belongs to another episode
        advantage[t] = following = delta[t] + GAMMA * LAMBDA * going_on * following
    return advantage


def weigh(parameters, observation, action, log_mu, reward, terminated, truncated, successor):
    """Turn a rollout [T, N] into a batch [T·N] of observation, action, log μ(a|s), advantage and critic target."""
    values, next_values = (np.asarray(network(parameters["critic"], x))[..., 0] for x in (observation, successor))
    advantage = generalised_advantage(reward, terminated, truncated, values, next_values)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    batch = (observation, action, log_mu, scaled, advantage + values)  # the target keeps the units of the reward
    return [x.reshape(-1, *x.shape[2:]) for x in batch]


def loss(parameters, batch):
    """Return policy loss + critic loss − entropy bonus. Actor and critic share no parameters."""
    observation, action, log_mu, advantage, target = batch
    log_pi, entropy = log_probability(parameters, observation, action)
    ratio = jnp.exp(log_pi - log_mu)  # ρ = π_θ/μ
    clipped = jnp.clip(ratio, 1 - EPSILON, 1 + EPSILON)
    policy_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
    critic_loss = 0.5 * jnp.mean((network(parameters["critic"], observation)[..., 0] - target) ** 2)
    return policy_loss + critic_loss - ENTROPY_COEFFICIENT * jnp.mean(entropy)  # the bonus favours exploration


@jax.jit
def act(parameters, observation, key):
    """Sample a ~ π_θ(·|s) and return it with its log-probability."""
    action = jax.random.categorical(key, network(parameters["actor"], observation))
    return action, log_probability(parameters, observation, action)[0]


def collect(worlds, now, parameters, key):
    """Take NUM_STEPS steps in every environment, continuing from the observations `now`. The last value returned is a
    list of the returns of finished episodes."""
    rows, returns = [], []
    for step_key in jax.random.split(key, NUM_STEPS):
        action, log_mu = (np.asarray(x) for x in act(parameters, now, step_key))
        *facts, information = zip(*(w.step(int(a)) for w, a in zip(worlds, action, strict=True)), strict=True)
        successor, reward, terminated, truncated = (np.asarray(fact) for fact in facts)
        rows.append((now, action, log_mu, reward.astype(np.float32), terminated, truncated, successor))
        returns += [float(x["episode"]["r"]) for x in information if "episode" in x]
        # After an end, acting continues from a new episode's first observation, which is not stored as the successor.
        ended = terminated | truncated
        now = np.stack([w.reset()[0] if e else s for w, e, s in zip(worlds, ended, successor, strict=True)])
    return now, [np.stack(column) for column in zip(*rows, strict=True)], returns


def train(steps: int = 100_000, seed: int = 0):
    """Collect batches and learn from them until all steps are used. Returns the mean episode return of each batch."""
    actor_key, critic_key, key = jax.random.split(jax.random.key(seed), 3)
    parameters = {"actor": initialise(actor_key, SIZES, 0.01), "critic": initialise(critic_key, (*SIZES[:-1], 1), 1.0)}
    worlds = [RecordEpisodeStatistics(gymnasium.make("CartPole-v1")) for _ in range(NUM_ENVS)]
    now = np.stack([world.reset(seed=seed * NUM_ENVS + n)[0] for n, world in enumerate(worlds)])
    size, shuffler, history = NUM_STEPS * NUM_ENVS, np.random.default_rng(seed), []
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, steps // size * EPOCHS * MINIBATCHES)
    optimiser, gradient = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5)), jax.grad(loss)
    state, move = optimiser.init(parameters), jax.jit(lambda p, s, b: optimiser.update(gradient(p, b), s))
    for i in range(steps // size):
        now, rollout, returns = collect(worlds, now, parameters, jax.random.fold_in(key, i))
        batch = weigh(parameters, *rollout)
        for _ in range(EPOCHS):
            for part in np.split(shuffler.permutation(size), MINIBATCHES):
                updates, state = move(parameters, state, [x[part] for x in batch])
                parameters = optax.apply_updates(parameters, updates)
        history.append(float(np.mean(returns)) if returns else float("nan"))
        print(f"step {(i + 1) * size:7,}   return {history[-1]:6.1f}")
    return history


if __name__ == "__main__":
    tyro.cli(train)
