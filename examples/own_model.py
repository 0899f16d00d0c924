"""A model of your own: an Equinox module with a trunk shared by policy and critic."""

import equinox as eqx
import jax

import upslope


class Shared(eqx.Module):
    """One hidden layer, whose output is used for both the policy and the value."""

    trunk: eqx.nn.Linear
    policy: eqx.nn.Linear
    value: eqx.nn.Linear
    log_std: jax.Array
    head: object = eqx.field(static=True)

    def __init__(self, observation_space, action_space, *, key, width=32):
        keys = jax.random.split(key, 3)
        self.head = upslope.head_of(action_space)
        self.trunk = eqx.nn.Linear(observation_space.shape[0], width, key=keys[0])
        self.policy = eqx.nn.Linear(width, self.head.num_outputs, key=keys[1])
        self.value = eqx.nn.Linear(width, 1, key=keys[2])
        self.log_std = jax.numpy.zeros(self.head.num_scales)  # empty unless actions are real vectors

    def prepare(self, observation):  # anything that needs no parameters; computed once per batch
        return observation

    def start(self, num):  # the initial memory of `num` episodes; this model has none
        return ()

    def step(self, features, carry, fresh):  # π(·|s) and V(s) for each of N observations
        hidden = jax.nn.tanh(jax.vmap(self.trunk)(features))
        policy = self.head.distribution(jax.vmap(self.policy)(hidden), self.log_std)
        return upslope.Outputs(policy, jax.vmap(self.value)(hidden)[:, 0]), carry

    def groups(self):  # one group of parameters, so one optimiser and one loss
        return {"shared": self}
