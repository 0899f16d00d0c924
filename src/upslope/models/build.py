"""Build a model: upslope's own, or a user's class or factory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from upslope.core.arrays import STATIC, is_shape, pytree
from upslope.core.distributions import Distribution, MultiCategorical, Product
from upslope.core.messages import listed
from upslope.core.reading import brief
from upslope.core.space_parts import leaf_spaces
from upslope.errors import UpslopeError
from upslope.models.composed import composed, least_numbers_of, networks_of
from upslope.models.encoders import ObservationEncoder, encoder_of
from upslope.models.head import ActionHead
from upslope.models.heads import head_of
from upslope.models.model import Model, Outputs, Place, group_places
from upslope.models.perceptrons import num_parameters, perceptrons
from upslope.models.readers import Reader, reader
from upslope.models.views import FLAGS, WHOLE, Views, views_of

METHODS = ("prepare", "start", "step", "groups")


class Rest:
    """The leaves of a user's model that are not parameters: functions, sizes, flags. They are rebuilt and never
    stored."""

    def __init__(self, tree: Any):
        self.tree = tree


@pytree
class OwnModel:
    """A user's model, whose parameters are kept separate so that training can stack, store and update them."""

    parameters: Any
    rest: Rest = field(metadata=STATIC)

    @property
    def whole(self) -> Any:
        """The user's model."""
        return equinox.combine(self.parameters, self.rest.tree)

    def prepare(self, observation: Any) -> Any:
        return self.whole.prepare(observation)

    def start(self, num: int) -> Any:
        return self.whole.start(num)

    def step(self, features: Any, carry: Any, fresh: Bool[Array, "N"]) -> tuple[Outputs, Any]:
        return self.whole.step(features, carry, fresh)

    def groups(self) -> dict[str, Any]:
        return {name: equinox.filter(tree, is_parameter_like) for name, tree in self.whole.groups().items()}


def is_parameter_like(leaf: Any) -> bool:
    """Whether a leaf is a parameter or a `Place` that stands for one."""
    return isinstance(leaf, Place) or equinox.is_inexact_array(leaf)


@dataclass(frozen=True)
class ModelSpec:
    """Builds models for an observation space and an action space."""

    encoder: ObservationEncoder
    head: ActionHead
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the builder."""
    own: Callable[..., Any] | None = None
    """A user's class or factory, own(observation_space, action_space, *, key, **settings); None for built-in models."""

    def build(self, key: PRNGKeyArray) -> Model:
        """Create a newly initialised model."""
        return self.build_all([key])[0]

    def build_all(self, keys: Sequence[PRNGKeyArray]) -> list[Any]:
        """Create a model for each key. The models differ only in their parameters."""
        if self.own is None:
            return [networks(self.encoder, self.head, key=key, **self.settings) for key in keys]
        parts = [equinox.partition(self.call(key), equinox.is_inexact_array) for key in keys]
        rest = Rest(parts[0][1])
        models = [OwnModel(parameters, rest) for parameters, _ in parts]
        self.check(models[0])
        for model in models:
            refuse_parameters(model.parameters, name_of_model(self.own))
        return models

    def call(self, key: PRNGKeyArray) -> Any:
        """Create the user's model, and check that it has the required methods."""
        assert self.own is not None
        name = name_of_model(self.own)
        try:
            made = self.own(self.encoder.space(), self.head.space(), key=key, **self.settings)
        except Exception as error:
            raise UpslopeError(
                f"The model {name} could not be created: {type(error).__name__}: {brief(error)}. It is called as "
                f"{name}(observation_space, action_space, key=key, **model_kwargs)."
            ) from error
        missing = [method for method in METHODS if not callable(getattr(made, method, None))]
        if missing:
            raise UpslopeError(
                f"{name} returns a {type(made).__name__} without the methods {', '.join(missing)}. A model has "
                f"{', '.join(METHODS)}; see upslope.Model."
            )
        if jax.tree.leaves(made) == [made]:
            raise UpslopeError(
                f"{name} returns a {type(made).__name__}, which is not a pytree, so its parameters cannot be found. "
                "Derive the class from equinox.Module, or register it with jax.tree_util.register_dataclass."
            )
        return made

    def check(self, model: OwnModel) -> None:
        """Trace one step of two columns, so that mismatches are reported before training."""
        name = name_of_model(self.own)
        try:
            group_places(model)
            value, log_prob, carry = jax.eval_shape(lambda m: self.two_columns(m), model)
        except UpslopeError:
            raise
        except Exception as error:
            raise UpslopeError(
                f"The model {name} cannot take a step: {type(error).__name__}: {brief(error)}."
            ) from error
        wanted = jax.eval_shape(lambda: model.start(2))
        if jax.tree.map(lambda x: (x.shape, x.dtype), carry) != jax.tree.map(lambda x: (x.shape, x.dtype), wanted):
            raise UpslopeError(f"{name}.step() returns a different carry from {name}.start(): {carry}, not {wanted}.")
        if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(carry)):
            raise UpslopeError(
                f"The carry of {name} contains random keys, which cannot be stored. Store their jax.random.key_data "
                "instead, and restore them with jax.random.wrap_key_data."
            )
        if value.shape != (2,):
            raise UpslopeError(f"{name}.step() returns values of shape {value.shape} for 2 columns, not (2,).")
        for what, x in (("values", value), ("log probabilities", log_prob)):
            if x.dtype not in (jnp.float32, jnp.float64):
                raise UpslopeError(
                    f"{name}.step() returns {what} of dtype {x.dtype}. Layers may compute with other dtypes, but the "
                    "outputs must be converted to float32, because learning computes with 32 bits."
                )

    def observations_like(self, *axes: int) -> Any:
        """The shapes and dtypes of observations with these leading axes."""
        return jax.tree.map(
            lambda shape, space: jax.ShapeDtypeStruct((*axes, *shape), jax.dtypes.canonicalize_dtype(space.dtype)),
            self.encoder.shapes,
            leaf_spaces(self.encoder.space()),
            is_leaf=is_shape,
        )

    def two_columns(self, model: OwnModel) -> Any:
        """Return V, a log probability and the carry after one step of two columns.

        Raises:
            TypeError: the outputs do not fit the head.
        """
        observation = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.observations_like(2))
        outputs, carry = model.step(model.prepare(observation), model.start(2), jnp.ones(2, bool))
        if not isinstance(outputs, Outputs) or not isinstance(outputs.policy, Distribution):
            raise TypeError("step() must return (upslope.Outputs(policy, value), carry) with a distribution as policy")
        action, wanted = outputs.policy.mode(), (2, *self.head.sample_shape)
        if action.shape != wanted:
            raise TypeError(f"for 2 columns, actions have shape {action.shape}, but the space requires {wanted}")
        found, needed = choices_of(outputs.policy), choices_of(self.plain_policy())
        if len(found) != len(needed):
            found, needed = (sum(found),), (sum(needed),)
        if any(mine and mine != other for mine, other in zip(found, needed, strict=True)):
            raise TypeError(f"the policy has {joined(found)} choices, but the space has {joined(needed)}")
        return outputs.value, outputs.policy.log_prob(action), carry

    def plain_policy(self) -> Distribution:
        """The head's own distribution for two columns."""
        zeros = [jnp.zeros((2, num)) for num in (self.head.num_outputs, self.head.num_features)]
        return self.head.distribution(zeros[0], jnp.zeros(self.head.num_scales), zeros[1])


def networks(
    encoder: ObservationEncoder, head: ActionHead, *, key: PRNGKeyArray, encoders: Sequence[str] = (), **settings: Any
) -> Any:
    """Build upslope's own networks: two perceptrons, or composed networks for images, a memory or a shared trunk."""
    images = networks_of(encoder, encoders)
    views = views_of(encoder, images, settings)
    built: dict[str, Any] = {name: value for name, value in settings.items() if name not in FLAGS} | {"views": views}
    if images or settings.get("memory") or settings.get("shared_trunk"):
        refuse_views_of_trunk(settings, views)
        return composed(encoder, head, key=key, networks=images, **built)
    plain = ("hidden_sizes", "activation", "log_std_init", "views")
    return perceptrons(encoder, head, key=key, **{name: built[name] for name in plain if name in built})


def networks_for(spec: ModelSpec, outputs: int, key: PRNGKeyArray, **settings: Any) -> Reader:
    """Create a network that maps observations to this number of outputs. Its settings are those of the agent's own
    networks, unless `settings` overrides them."""
    chosen = spec.settings if spec.own is None else {}
    like = {name: chosen[name] for name in ("hidden_sizes", "activation") if name in chosen}
    images = networks_of(spec.encoder, chosen.get("encoders", ()))
    return reader(spec.encoder, outputs, key=key, networks=images, **(like | settings))


def refuse_views_of_trunk(settings: Mapping[str, Any], views: Views) -> None:
    """Reject separate views of an observation for a policy and a critic that share their layers."""
    if settings.get("shared_trunk") and views != (WHOLE, WHOLE):
        raise UpslopeError(
            f"{' and '.join(FLAGS.values())} choose what each network reads, but with --shared-trunk there is "
            "only one network. Remove one of the two, or hide parts from both with --ignore-observation."
        )


def least_numbers(spec: ModelSpec) -> int:
    """A lower bound on the parameter count of upslope's own networks, without creating them; 0 for a user's model."""
    if spec.own is not None:
        return 0
    images = networks_of(spec.encoder, spec.settings.get("encoders", ()))
    if not images and not spec.settings.get("memory"):
        views = views_of(spec.encoder, images, spec.settings)
        both = num_parameters(spec.encoder, spec.head, spec.settings["hidden_sizes"], views)
        return both // 2 if spec.settings.get("shared_trunk") else both
    policy, _ = views_of(spec.encoder, images, spec.settings)
    return least_numbers_of(spec.encoder, policy.chosen(images), spec.settings)


def unusual_parts(spec: ModelSpec) -> list[str]:
    """Describe what upslope's own networks contain beyond two perceptrons."""
    if spec.own is not None:
        return []
    images, settings = networks_of(spec.encoder, spec.settings.get("encoders", ())), spec.settings
    found = [f"{key or 'images'} read by {network}" for key, network in images]
    if settings.get("memory"):
        found.append(f"memory {settings['memory']} of {settings['memory_size']} units")
    views = zip(("policy", "critic"), views_of(spec.encoder, images, settings), FLAGS, strict=True)
    found += [f"the {who} reads only {listed(settings[name])}" for who, view, name in views if view != WHOLE]
    if settings.get("shared_trunk"):
        found.append("a shared trunk")
    if spec.head.is_squashed:
        found.append("actions squashed by tanh")
    return [*found, "σ from the network"] if any(box.has_state_std for box in spec.head.boxes.values()) else found


def perceptrons_for(environment: Any, **settings: Any) -> ModelSpec:
    """The specification of a model of two perceptrons for an environment's spaces."""
    encoder = encoder_of(environment.observation_space, "environment")
    return ModelSpec(encoder, head_of(environment.action_space, "environment"), settings)


def choices_of(policy: Distribution) -> tuple[int, ...]:
    """The number of choices of each part of a policy; 0 for real-valued parts, and for a user's own distribution."""
    if isinstance(policy, MultiCategorical):
        return tuple(part.num_choices for part in policy.heads)
    if isinstance(policy, Product):
        return tuple(number for part in policy.parts for number in choices_of(part))
    return (policy.num_choices,)


def joined(numbers: tuple[int, ...]) -> str:
    """Numbers of choices, for messages."""
    return " × ".join(map(str, numbers))


def refuse_parameters(parameters: Any, name: str) -> None:
    """Reject a user's initial parameters that are not finite real numbers."""
    for path, x in jax.tree.leaves_with_path(parameters):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.iscomplexobj(x):
            raise UpslopeError(f"The parameter {place} is complex ({x.dtype}). Store its real and imaginary parts.")
        if not np.isfinite(x).all():
            raise UpslopeError(f"The parameter {place} contains numbers that are not finite when the model is created.")


def name_of_model(own: Any) -> str:
    """The name of a user's class or factory."""
    return getattr(own, "__qualname__", type(own).__qualname__)
