"""Freezing: what trains under each regime, and what the optimizer keeps for the rest."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.training.freezing import FROZEN, TRAINABLE, label_parameters, partition, regime_rules


def abstract(name: str, **options):
    """(model, its parameters as shapes)."""
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    return model, params_of(model)


@pytest.fixture(scope="module")
def davit():
    return abstract("davit_tiny", preset="kecam")


def labels_of(regime: str, model, params) -> dict[str, str]:
    return label_parameters(params, regime_rules(regime, model, list(params)))


def test_partial_trains_the_published_168_of_212_tensors_of_davit_tiny(davit):
    model, params = davit
    labels = labels_of("partial", model, params)
    assert labels.keys() == params.keys()
    trainable = [path for path, label in labels.items() if label == TRAINABLE]
    assert (len(trainable), len(params)) == (168, 212)
    assert sum(params[path].size for path in trainable) == 27_273_601
    # The cut falls right behind the first norm of the second stage.
    assert labels["stages/1/blocks/0/spatial/norm1/scale"] == FROZEN
    assert labels["stages/1/blocks/0/spatial/attention/qkv/kernel"] == TRAINABLE
    assert labels["stages/0/blocks/0/channel/mlp/fc2/kernel"] == FROZEN
    assert labels["stages/1/blocks/0/channel/norm1/scale"] == TRAINABLE


@pytest.mark.parametrize("regime", ["full", "scratch"])
def test_full_and_scratch_train_everything(davit, regime):
    assert set(labels_of(regime, *davit).values()) == {TRAINABLE}


def test_head_only_trains_the_logits_alone(davit):
    labels = labels_of("head_only", *davit)
    assert {path for path, label in labels.items() if label == TRAINABLE} == {
        "head/kernel",
        "head/bias",
    }


@pytest.mark.parametrize("name", ["alexnet_mini", "googlenet"])
def test_partial_is_refused_for_a_network_without_a_published_cut(name):
    with pytest.raises(UserError, match=f"'{name}' has no published cut"):
        labels_of("partial", *abstract(name))


def test_an_unknown_regime_is_refused_by_name(davit):
    model, params = davit
    with pytest.raises(UserError, match="'half'; choose one of full, partial"):
        regime_rules("half", model, list(params))


PATHS = ["stem/kernel", "stem/bias", "head/kernel"]


def test_the_first_rule_that_matches_a_whole_path_counts():
    rules = [("stem/k.*", TRAINABLE), ("stem/.*", FROZEN), (".*", TRAINABLE)]
    assert label_parameters(PATHS, rules) == {
        "stem/kernel": TRAINABLE,
        "stem/bias": FROZEN,
        "head/kernel": TRAINABLE,
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("stages/.*", FROZEN), (".*", TRAINABLE)], r"rule 'stages/\.\*' matches no parameter"),
        ([("stem", FROZEN), (".*", TRAINABLE)], r"rule 'stem' matches no parameter"),
        ([("stem/.*", FROZEN)], r"no freezing rule covers parameter 'head/kernel'"),
        ([(".*", FROZEN)], r"every parameter is frozen"),
    ],
)
def test_rules_that_say_something_else_than_meant_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        label_parameters(PATHS, rules)


def test_the_optimizer_keeps_nothing_for_frozen_parameters(davit):
    model, params = davit
    labels = labels_of("partial", model, params)
    trainable = {path: leaf for path, leaf in params.items() if labels[path] == TRAINABLE}
    optimizer = partition(optax.scale_by_adam(), labels)
    slots = jax.tree.leaves(jax.eval_shape(optimizer.init, trainable))
    assert len(slots) == 2 * 168 + 1  # both moments of what trains, and Adam's count
    assert sum(leaf.size for leaf in slots) == 2 * 27_273_601 + 1


def test_the_partitioned_update_equals_the_plain_optimizers():
    labels = {"a": TRAINABLE, "b": FROZEN}
    params, grads = {"a": jnp.ones(3)}, {"a": jnp.arange(3.0)}
    plain, ours = optax.scale_by_adam(), partition(optax.scale_by_adam(), labels)
    expected, _ = plain.update(grads, plain.init(params), params)
    got, _ = ours.update(grads, ours.init(params), params)
    assert got.keys() == {"a"}
    assert got["a"].tolist() == expected["a"].tolist()
