"""Use a trained policy without an environment: it maps NumPy observations to NumPy actions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from upslope.config.config import Config
from upslope.config.task import model_of
from upslope.config.trust import ROLES, require
from upslope.core.arrays import is_shape, rows_at, shaped_like
from upslope.core.files import AnyPath
from upslope.core.messages import shell
from upslope.core.reading import brief
from upslope.core.space_parts import leaf_spaces
from upslope.engines.base import finite_seeds
from upslope.engines.border import Leaf, leaf_of, short
from upslope.environments.masks import KEY, apart
from upslope.errors import UpslopeError
from upslope.models.agent import Agent, initialise_agent
from upslope.models.build import ModelSpec, least_numbers
from upslope.models.description import from_json, to_json
from upslope.models.encoders import ENCODERS, ObservationEncoder, at
from upslope.models.head import ActionHead
from upslope.models.heads import HEADS
from upslope.models.model import POLICY, VALUE, has_memory
from upslope.models.views import View, completed, emptied, view_in
from upslope.runs.checkpoint_meta import remedy_for
from upslope.runs.checkpoints import check_size, load_checkpoint
from upslope.runs.directory import RunDirectory
from upslope.runs.same_settings import require_same_agents

if TYPE_CHECKING:
    from upslope.runs.export.writing import Exported

Which = Literal["best", "last"]


class Policy:
    """π(a|s) of one trained agent, with its normaliser.

    Call it with one observation or a batch: `policy(observation)` returns the action (deterministic unless
    `deterministic=False`) in the environment's units, clipped to its bounds. A model with memory keeps one memory per
    row of a batch between calls, so call `policy.reset()` when episodes begin.

    Parts of a Dict that the policy does not read (`--policy-reads`) may be missing from its observations.

    A policy trained with action masks needs a mask at every call, unless the observation contains the mask under
    `action_mask`: `policy(observation, mask=info["action_mask"])`; for a batch, pass a sequence of masks.
    """

    def __init__(
        self,
        agent: Agent,
        encoder: ObservationEncoder,
        seed: int,
        checkpoint: Which,
        has_critic: bool = True,
        random_seed: int = 0,
        ignored: Sequence[str] = (),
        needs_mask: bool = False,
    ):
        """`ignored` holds the keys of observations that were ignored in training."""
        self.ignored, self.needs_mask = ignored, needs_mask
        self.agent, self.encoder, self.seed, self.checkpoint = agent, encoder, seed, checkpoint
        self.has_critic, self.has_memory = has_critic, has_memory(agent.model)
        self.memory: Any = None
        self.key = jax.random.key(random_seed)
        self.calls = self.begun = 0
        self.acts_in_numpy = hasattr(agent.model, "policy") and not self.has_memory
        self.numpy_agent: Agent = jax.tree.map(np.asarray, agent) if self.acts_in_numpy else agent
        self.noise = jax.jit(lambda agent, x, now, held: agent.policy(x).held_noise(now, held))
        self.act = jax.jit(lambda agent, x, mask: agent.policy(x, mask))
        self.step = jax.jit(lambda agent, x, carry, fresh, mask: agent.act(x, carry, fresh, mask))
        self.judge = jax.jit(lambda agent, x: agent.value(x) / agent.reward_scale())

    def __repr__(self) -> str:
        spaces = f"{self.encoder.space()} → {self.agent.head.space()}"
        return f"Policy(seed {self.seed}, checkpoint {self.checkpoint}: {spaces})"

    def __call__(self, observation: Any, deterministic: bool = True, *, mask: Any = None) -> Any:
        """Map an observation [*shape] to an action, or a batch [B, *shape] to actions [B, …]."""
        return self.with_log_prob(observation, deterministic, mask=mask)[0]

    def reset(self) -> None:
        """Clear the memory, so that the next call begins an episode. A policy without memory is unaffected, except that
        it redraws any noise that it would hold over several calls."""
        self.memory, self.begun = None, self.calls

    def with_log_prob(self, observation: Any, deterministic: bool = False, *, mask: Any = None) -> tuple[Any, Any]:
        """Return (action, log π(a|s)). For a Box, this is the log-density of the action before clipping, or after
        squashing.

        Raises:
            UpslopeError: the observation has neither the shape of the space nor that shape with one batch axis, or
                contains numbers that are not finite or that the space's dtype cannot hold, or the mask of allowed
                actions is missing, does not fit, or allows no action.
        """
        observation, shown = self.without_mask(observation)
        mask = shown if mask is None and self.needs_mask else mask
        batch, is_batch = self.as_batch(observation, POLICY)
        policy = self.distribution(batch, self.as_mask(mask, batch, is_batch))
        if deterministic:
            action = np.asarray(policy.mode())
        else:
            since = self.begun + self.agent.head.held_since(self.calls - self.begun)
            keys = [jax.random.fold_in(self.key, number) for number in (self.calls, since)]
            noise = self.noise(self.agent, batch, *keys) if self.acts_in_numpy else policy.held_noise(*keys)
            action = np.asarray(policy.choose(np.asarray(noise)))
            self.calls += 1
        taken, log_prob = self.agent.head.to_environment(action), np.asarray(policy.log_prob(action))
        # A Box action is an array even if it has no axes; a Discrete action is a number.
        first = lambda x: x[0] if x.dtype.kind in "iu" else x[0, ...]  # noqa: E731 - one expression with a name
        return (taken, log_prob) if is_batch else (jax.tree.map(first, taken), log_prob[0])

    def without_mask(self, observation: Any) -> tuple[Any, Any]:
        """Return the observation without the mask that it contains, and that mask (None if it contains none)."""
        shapes = self.encoder.shapes
        is_no_input = isinstance(shapes, dict) and KEY not in shapes
        holds_one = is_no_input and isinstance(observation, Mapping) and KEY in observation
        return apart(observation) if holds_one else (observation, None)

    def as_batch(self, observation: Any, group: str) -> tuple[Any, bool]:
        """Return the observation with a batch axis, and whether it already had one.

        Parts that this group of the model does not read may be missing, and are then replaced by 0."""
        shapes, view = self.encoder.shapes, view_in(self.agent.model, group)
        axes = None
        for ignored in ((), self.ignored):  # without the parts that training ignored, or with them
            if axes is None:
                with suppress(ValueError):
                    arrays, axes = self.structured(observation, view, ignored)
                    observation = arrays
        if axes is None:
            found = jax.tree.map(np.shape, observation)
            batch = f"[B, {', '.join(map(str, shapes))}]" if is_shape(shapes) else "with a first axis [B] of each array"
            raise UpslopeError(f"This policy reads observations of shape {shapes}, or a batch {batch}, not {found}.")
        self.require_readable(observation, view)
        return (observation, True) if axes else (jax.tree.map(lambda x: x[None], observation), False)

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """The arrays of an observation with their spaces, by key."""
        parts = self.encoder.leaves(leaf_spaces(self.encoder.space()))
        return {key: leaf_of((), space, space.shape or ()) for key, _, space in parts}

    def require_readable(self, observation: Any, view: View) -> None:
        """Refuse numbers that training would refuse: those that are not finite, or that a conversion to the dtype of
        the space would change, such as an image scaled to [0, 1]. Parts that are not read may have any value."""
        read = [(key, x) for key, _, x in self.encoder.leaves(observation) if view.reads(key)]
        wrong = [(key, x, reason) for key, x in read if (reason := self.leaves[key].wrong(x))]
        if not wrong:
            wrong = [(key, x, reason) for key, x in read if (reason := not_finite(x))]
            if wrong and view.spans is not None and not not_finite(self.vector_read(observation, view)):
                return  # only components that are not read
        for key, x, reason in wrong:
            leaf = self.leaves[key]
            reads = leaf.space if leaf.is_index else f"{leaf.dtype} numbers"
            raise UpslopeError(f"This policy reads {reads}{at(key)}, but was given {short(x)}: {reason}.")

    def vector_read(self, observation: Any, view: View) -> np.ndarray:
        """The components that a group of the model reads, of all arrays except images."""
        features = self.agent.model.prepare(observation)
        vector = features[0] if isinstance(features, tuple) else features
        return np.zeros(0) if vector is None else np.asarray(view.vector(vector))

    def as_mask(self, mask: Any, batch: Any, is_batch: bool) -> Any:
        """Return the allowed choices of each row [B, M], or None if nothing is forbidden."""
        if mask is None:
            if self.needs_mask:
                raise UpslopeError(
                    "This policy was trained with action masks, and without a mask it would choose forbidden actions. "
                    'Pass it: policy(observation, mask=info["action_mask"]).'
                )
            return None
        head, count = self.agent.head, jax.tree.leaves(batch)[0].shape[0]
        try:
            given = list(mask) if is_batch else [mask]
        except TypeError:  # a number
            given = []
        if len(given) != count:
            raise UpslopeError(f"There are {count} observations but {len(given)} masks. Pass one mask for each.")
        try:
            masks: Any = np.stack([head.flat_mask(one) for one in given])
        except ValueError as error:
            raise UpslopeError(f"The mask does not fit the actions of this policy: {brief(error)}.") from error
        if not head.allows_some(masks).all():
            row = int(np.flatnonzero(~head.allows_some(masks))[0])
            raise UpslopeError(f"The mask of row {row} allows no action. It must allow at least one.")
        return masks

    def structured(self, observation: Any, view: View, ignored: Sequence[str]) -> tuple[Any, int | None]:
        """Return the observation in the structure that the encoder reads, without the parts under the `ignored` keys,
        and the number of its batch axes (None if its arrays do not fit).

        Raises:
            ValueError: its structure does not match.
        """
        shapes = self.encoder.shapes
        # Map over the structure of the shapes, not of the observation, since an observation or its parts may be lists
        # of numbers.
        given = shaped_like(shapes, completed(shapes, observation, view), ignored)
        arrays = jax.tree.map(lambda shape, x: np.asarray(x), shapes, given, is_leaf=is_shape)
        arrays = emptied(self.encoder, arrays, view)
        return arrays, self.encoder.num_batch_axes(arrays)

    def distribution(self, batch: Any, mask: Any = None) -> Any:
        """Return π(·|s) for every row. If the model has memory, the memory is updated."""
        if not self.has_memory:
            return self.numpy_agent.policy(batch, mask) if self.acts_in_numpy else self.act(self.agent, batch, mask)
        count = jax.tree.leaves(batch)[0].shape[0]
        fresh = np.full(count, self.memory is None)
        if self.memory is None:
            self.memory = self.agent.model.start(count)
        known = jax.tree.leaves(self.memory)[0].shape[0]
        if known != count:
            raise UpslopeError(
                f"This policy remembers {known} episodes, but received {count} observations. Call policy.reset() when "
                "new episodes begin."
            )
        policy, self.memory = self.step(self.agent, batch, self.memory, fresh, mask)
        return policy

    def value(self, observation: Any) -> Any:
        """Return V(s) in the environment's reward units: one number, or [B] for a batch.

        Raises:
            UpslopeError: the agent was trained with an estimator without a critic, or the model has memory, so that V
                depends on the whole episode.
        """
        if not self.has_critic:
            raise UpslopeError("This policy was trained without a critic, so it has no values. Use --estimator gae.")
        if self.has_memory:
            raise UpslopeError("This policy has memory, so V depends on the episode so far. Use upslope credit.")
        batch, is_batch = self.as_batch(self.without_mask(observation)[0], VALUE)
        value = np.asarray(self.judge(self.agent, batch))
        return value if is_batch else value[0]

    def export(self, format: str, output: str | Path | None = None) -> "Exported":
        """Export the deterministic policy to a file that runs without upslope; see `upslope.export`.

        The default is `policy.onnx`, `policy.py` or `policy.h` in the current folder.
        """
        from upslope.runs.export.writing import export_policy

        return export_policy(self, format, output)


def load(
    run: AnyPath,
    *,
    seed: int | None = None,
    checkpoint: Which = "best",
    random_seed: int = 0,
    model: Callable[..., Any] | None = None,
    trust: bool = False,
) -> Policy:
    """Load the policy of a run.

    Args:
        run: the run directory.
        seed: one of the run's seeds; by default the one with the best training return. Since this choice depends on the
            outcome, evaluate all seeds to assess an algorithm.
        checkpoint: `best` (the agent with the highest mean return over its last 20 to 100 training episodes) or `last`.
        random_seed: the seed for sampling actions with `deterministic=False`.
        model: the class or factory of a custom model that cannot be found by its name.
        trust: allows importing the custom model that the run's config.json names; nothing else is imported.

    Raises:
        UpslopeError: there is no such run, seed or checkpoint, or the checkpoint is damaged or was written by another
            version.
    """
    directory = RunDirectory(run)
    config = directory.config()
    agents, scores = load_agents(directory, config, checkpoint, model, trust=trust)
    seeds = config.seed_list()
    if seed is None:
        returns = [-np.inf if r is None else r for r in scores["best_return"]]
        seed = seeds[int(np.argmax(returns))]
    if seed not in seeds:
        raise UpslopeError(f"{directory.path} has no seed {seed}; it has {seeds[0]} to {seeds[-1]}.")
    index = seeds.index(seed)
    require_finite(agents, index, seed, directory)
    has_critic = bool(directory.read()["axes"].get("needs_critic", True))
    agent = rows_at(agents, index)
    encoder, ignored = spaces_of(directory)[0], config.ignore_observation
    return Policy(agent, encoder, seed, checkpoint, has_critic, random_seed, ignored, has_masks(directory))


def not_finite(x: np.ndarray) -> str:
    """Name a number that is not finite, or return an empty string if there is none."""
    is_finite = np.isfinite(x)
    return "" if is_finite.all() else f"{x[~is_finite].flat[0]} is not finite"


def require_finite(agents: Agent, index: int, seed: int, directory: RunDirectory) -> None:
    """Raise an error if the agent at this index has diverged, since the actions of such an agent still look
    plausible."""
    if not finite_seeds(agents)[index]:
        raise UpslopeError(
            f"The policy's parameters are not finite, so it cannot act: the agent of seed {seed} of {directory.path} "
            f"has diverged. To find out why, run: {shell('upslope', 'doctor', directory.path)}. Use another seed, "
            "or the checkpoint best."
        )


def load_agents(
    directory: RunDirectory,
    config: Config,
    checkpoint: Which,
    model: Callable[..., Any] | None = None,
    *,
    trust: bool = False,
) -> tuple[Agent, dict[str, Any]]:
    """Load all seeds' agents [S] from a checkpoint, together with its metadata about their returns."""
    if checkpoint not in ("best", "last"):
        raise UpslopeError(f'A checkpoint is "best" or "last", not "{checkpoint}".')
    if model is None:
        require(config, directory.path, trust=trust, given=set(ROLES) - {"model"})
    path, prefix = (directory.best, "") if checkpoint == "best" else (directory.last, ".learner.agent")
    require_same_agents(directory, config, path)
    encoder, head = spaces_of(directory)
    spec = model_of(config, encoder, head, model)
    check_checkpoint_size(path, config, spec)
    loaded, _, meta = load_checkpoint(path, agents_like(config, spec), prefix)
    check_scores(path, meta, config.seeds)
    return loaded, meta


def agents_like(config: Config, spec: ModelSpec) -> Agent:
    """The shapes and dtypes of the agents of all seeds [S]."""
    one = initialise_agent(
        jax.random.key(config.seed),
        spec,
        normalize_observations=config.normalize_observations,
        normalize_rewards=config.normalize_rewards,
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.seeds, *x.shape), x.dtype), one)


def check_checkpoint_size(path: Path, config: Config, spec: ModelSpec, more: int = 0) -> None:
    """Raise an error if the checkpoint contains fewer numbers than the config describes, plus `more` per seed.

    This check runs before memory for the numbers is allocated. The size of a custom model is known only after it is
    created."""
    check_size(path, config.seeds * (least_numbers(spec) + more))


def spaces_of(directory: RunDirectory) -> tuple[ObservationEncoder, ActionHead]:
    """Read the encoder and head of a run from its config.json."""
    return spaces_from(directory.read()["spaces"], str(directory.path / "config.json"))


def spaces_from(spaces: dict[str, Any], where: str) -> tuple[ObservationEncoder, ActionHead]:
    """Invert `described_spaces`; `where` is the file's name in messages."""
    try:
        return from_json(spaces["observation"], ENCODERS), from_json(spaces["action"], HEADS)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UpslopeError(f"{where} does not describe the spaces: {brief(error)}.") from error


def has_masks(directory: RunDirectory) -> bool:
    """Return whether a run was trained with action masks."""
    return directory.read()["spaces"].get("has_masks", False) is True


def described_spaces(encoder: ObservationEncoder, head: ActionHead, *, has_masks: bool = False) -> dict[str, Any]:
    """Describe an encoder and a head for config.json."""
    return {"observation": to_json(encoder), "action": to_json(head), "has_masks": has_masks}


def check_scores(path: Path, meta: dict[str, Any], seeds: int, remedy: str = "") -> None:
    """Raise an error if a checkpoint does not record each seed's best return and the step at which it was reached.
    `remedy` replaces the advice of `remedy_for`."""
    returns, steps = meta.get("best_return"), meta.get("best_step")
    if not is_list(returns, (int, float, type(None)), seeds) or not is_list(steps, (int,), seeds):
        raise UpslopeError(
            f"{path} is damaged: it does not record each seed's best return and step. {remedy or remedy_for(path)}"
        )


def is_list(value: Any, kinds: tuple[type, ...], length: int) -> bool:
    """Return whether the value is a list of `length` values of the given types. A bool does not count as a number."""
    return isinstance(value, list) and len(value) == length and all(type(x) in kinds for x in value)
