"""Freezing: what trains in each phase, how fast, and what the optimizer keeps for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from quick_programs import quickly

from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.ops import native
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training.config import RunConfig
from glomjax.training.parameter_groups import (
    FROZEN,
    TRAINABLE,
    carry_over,
    disable_regularisation_in_frozen_layers,
    label_parameters,
    layer_rates,
    match_rules,
    partition,
    plan,
    rates_and_decays,
    thaw_groups,
)
from glomjax.training.steps import make_train_step, zero_sums

SMALL_DAVIT = {
    "depths": (1, 1, 1),
    "embed_dims": (16, 32, 64),
    "num_heads": (1, 2, 4),
    "drop_path_rate": 0.3,
}


def abstract(name: str, **options):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


@pytest.fixture(scope="module")
def davit():
    return abstract("davit_tiny", preset="kecam")


def test_partial_trains_the_published_168_of_212_tensors_of_davit_tiny(davit):
    (phase,) = plan(davit, "partial")
    params = params_of(davit)
    assert phase.labels.keys() == params.keys()
    assert (len(phase.trainable), len(params)) == (168, 212)
    assert sum(params[path].size for path in phase.trainable) == 27_273_601
    # The cut falls right behind the first norm of the second stage.
    assert phase.labels["stages/1/blocks/0/spatial/norm1/scale"] == FROZEN
    assert phase.labels["stages/1/blocks/0/spatial/attention/qkv/kernel"] == TRAINABLE
    assert phase.labels["stages/0/blocks/0/channel/mlp/fc2/kernel"] == FROZEN
    assert phase.labels["stages/1/blocks/0/channel/norm1/scale"] == TRAINABLE


@pytest.mark.parametrize("regime", ["full", "scratch"])
def test_full_and_scratch_train_everything(davit, regime):
    (phase,) = plan(davit, regime)
    assert set(phase.labels.values()) == {TRAINABLE}
    assert not phase.head_only


@pytest.mark.parametrize("name", ["alexnet_mini", "googlenet", "davit_tiny"])
def test_head_only_trains_the_logits_alone(name):
    (phase,) = plan(abstract(name), "head_only")
    assert set(phase.trainable) == {"head/kernel", "head/bias"}
    assert phase.head_only


@pytest.mark.parametrize(
    ("name", "until", "last_frozen", "first_trained"),
    [
        ("alexnet_mini", "conv3", "conv3/bias", "conv4/kernel"),
        ("alexnet_mini", "conv4/kernel", "conv4/kernel", "conv4/bias"),
        ("googlenet", "inception_4a/", "inception_4a/pool_proj/bias", "aux1/conv/kernel"),
        ("davit_tiny", "stages/2", "stages/2/blocks/2/channel/mlp/fc2/bias", "stages/3/downsample"),
        ("davit_tiny", "stem", "stem/norm/bias", "stages/0/blocks/0/spatial/cpe1/kernel"),
    ],
)
def test_partial_freezes_up_to_and_with_a_block_or_a_parameter(
    name, until, last_frozen, first_trained
):
    model = abstract(name)
    (phase,) = plan(model, "partial", until=until)
    order = model.forward_order
    count = sum(label == FROZEN for label in phase.labels.values())
    assert order[count - 1] == last_frozen
    assert order[count].startswith(first_trained)
    assert all(phase.labels[path] == FROZEN for path in order[:count])


@pytest.mark.parametrize("name", ["alexnet_mini", "googlenet"])
def test_partial_without_a_published_cut_asks_for_one_and_lists_the_blocks(name):
    with pytest.raises(UserError, match=rf"'{name}' has no published cut.*freeze.until.*conv1, "):
        plan(abstract(name), "partial")


@pytest.mark.parametrize(
    ("regime", "options", "message"),
    [
        ("half", {}, "'half'; choose one of full, partial"),
        ("partial", {"until": "stage9"}, "'stage9', but network 'davit_tiny' has no such block"),
        ("partial", {"until": "stages/1/bl"}, "'stages/1/bl', but network"),
        ("partial", {"until": "head"}, "every parameter is frozen"),
        ("full", {"until": "stem"}, "goes with regime 'partial' alone"),
        ("full", {"rules": ((".*", TRAINABLE),)}, "freeze.rules and the regime 'rules'"),
        ("rules", {}, "freeze.rules and the regime 'rules'"),
        ("rules", {"rules": ((".*", "thawed"),)}, "'thawed'; it is 'trainable' or 'frozen'"),
        ("rules", {"rules": (("[", FROZEN),)}, r"'\[' is no regular expression"),
        ("head_only", {"unfreeze": ("x",)}, "freeze.unfreeze has 'x'; write EPOCH:REGIME"),
        ("head_only", {"unfreeze": ("1:full",)}, "an epoch from 2"),
        ("head_only", {"unfreeze": ("3:everything",)}, "'3:everything'"),
        ("head_only", {"unfreeze": ("3:full:0",)}, "'3:full:0'"),
        ("head_only", {"unfreeze": ("3:full:1e999",)}, "'3:full:1e999'"),
        ("head_only", {"unfreeze": ("5:partial", "5:full")}, "'5:full' comes too early"),
        ("full", {"unfreeze": ("5:head_only",)}, "'5:head_only' thaws nothing"),
        ("full", {"unfreeze": ("5:scratch",)}, "'5:scratch' thaws nothing"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(davit, regime, options, message):
    with pytest.raises(UserError, match=message) as error:
        plan(davit, regime, **options)
    assert "\n" not in str(error.value)


@given(
    st.text(alphabet="0123456789:.efghulpartid_onyN-+", max_size=14)
    | st.builds("{}:{}:{}".format, st.integers(-3, 30), st.sampled_from(["full", "x"]), st.floats())
)
def test_any_schedule_is_a_plan_or_one_sentence(text):
    model = abstract("alexnet_mini", image_size=(64, 64))
    try:
        phases, message = plan(model, "head_only", unfreeze=(text,)), ""
    except UserError as error:
        phases, message = (), str(error)
    assert "\n" not in message
    assert bool(message) == (not phases)
    if phases:
        first, second = phases
        assert second.epoch >= 1
        assert 0 < second.factor < float("inf")
        assert set(first.trainable) < set(second.trainable)


def test_a_schedule_has_a_phase_per_thaw_with_epochs_counted_from_one(davit):
    phases = plan(davit, "head_only", unfreeze=("5:partial", "10:full:0.1"))
    assert [(p.epoch, p.regime, p.factor) for p in phases] == [
        (0, "head_only", 1.0),
        (4, "partial", 1.0),
        (9, "full", 0.1),
    ]
    groups = thaw_groups(phases)
    assert groups["head/kernel"] == 0
    assert groups["stages/3/blocks/0/spatial/mlp/fc1/kernel"] == 1
    assert groups["stem/conv/kernel"] == 2
    assert len(groups) == 212


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


def test_a_rule_that_would_match_for_ever_is_refused():
    paths, pattern = ["stages/1/blocks/0/spatial/attention/qkv/kernel"], r"(\w+/?)+!"
    rules = [("(stages/)?.*/kernel", FROZEN), (pattern, FROZEN), (".*", TRAINABLE)]
    with pytest.raises(UserError, match="takes for ever to match the names") as error:
        match_rules(paths, rules, "rule")
    assert f"rule {pattern!r} takes" in str(error.value)


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 3000])
def test_what_is_no_regular_expression_is_one_short_sentence(pattern):
    with pytest.raises(UserError, match="is no regular expression") as error:
        match_rules(PATHS, [(pattern, FROZEN)], "rule")
    assert len(str(error.value)) < 500


def test_rules_may_set_numbers_too():
    assert match_rules(PATHS, ((".*/bias", 0.0), (".*", 2.0)), "rate rule") == {
        "stem/kernel": 2.0,
        "stem/bias": 0.0,
        "head/kernel": 2.0,
    }


def test_layer_rates_fall_by_one_decay_a_layer_from_the_head_down(davit):
    rates = layer_rates(davit, 0.5)
    assert rates["head/kernel"] == 1
    assert rates["norm/scale"] == 0.5
    assert rates["stages/3/blocks/0/channel/mlp/fc2/kernel"] == 0.5**2
    assert rates["stages/3/blocks/0/spatial/cpe1/kernel"] == 0.5**2
    assert rates["stages/3/downsample/conv/kernel"] == 0.5**3
    assert rates["stages/2/blocks/2/spatial/cpe1/bias"] == 0.5**4
    assert rates["stages/2/blocks/0/spatial/cpe1/bias"] == 0.5**6
    assert rates["stem/conv/kernel"] == 0.5**11
    assert set(layer_rates(davit, 1.0).values()) == {1.0}


def test_rates_multiply_rules_layers_and_the_factor_of_the_thaw():
    model = abstract("alexnet_mini")
    phases = plan(model, "head_only", unfreeze=("3:full:0.1",))
    rates, decays = rates_and_decays(
        model,
        phases,
        learning_rate_rules=(("fc1/.*", 3.0), (".*", 1.0)),
        layer_decay=0.5,
        weight_decay=0.01,
        weight_decay_rules=RunConfig().weight_decay_rules,
    )
    assert rates["head/bias"] == 1
    assert rates["fc2/kernel"] == pytest.approx(0.5 * 0.1)
    assert rates["fc1/kernel"] == pytest.approx(0.25 * 0.1 * 3)
    assert (decays["fc1/kernel"], decays["fc1/bias"]) == (0.01, 0)


def test_factors_that_float32_takes_for_0_or_infinity_together_are_refused():
    model = abstract("alexnet_mini")
    common = {"learning_rate_rules": ((".*", 1e-20),), "layer_decay": 1.0, "weight_decay": 0.0}
    phases = plan(model, "head_only", unfreeze=("3:full:1e-20",))
    with pytest.raises(UserError, match=r"'conv1/kernel' the learning rate .* by 1e-40, by all"):
        rates_and_decays(model, phases, **common, weight_decay_rules=((".*", 0.0),))
    common |= {"weight_decay": 1e20}
    with pytest.raises(UserError, match=r"'conv1/kernel' the weight decay is 1e\+40, by all"):
        rates_and_decays(model, phases[:1], **common, weight_decay_rules=((".*", 1e20),))


def test_a_frozen_part_has_no_stochastic_depth_and_no_auxiliary_head():
    model = abstract("davit_tiny", **SMALL_DAVIT)
    rates = [m.rate for m in blocks(model)]
    (phase,) = plan(model, "partial", until="stages/1/blocks/0/spatial")
    disable_regularisation_in_frozen_layers(model, phase.labels)
    # Blocks in order: (spatial, channel) of three stages, of which three blocks are frozen.
    assert [m.rate for m in blocks(model)] == [0, 0, 0, *rates[3:]]
    assert all(rates[3:])
    google = abstract("googlenet")
    (phase,) = plan(google, "partial", until="inception_4b")
    disable_regularisation_in_frozen_layers(google, phase.labels)
    assert (google.aux1.active, google.aux2.active) == (False, True)


def blocks(model):
    return [
        getattr(block, kind).drop_path
        for stage in model.stages
        for block in stage.blocks
        for kind in ("spatial", "channel")
    ]


def test_the_optimizer_keeps_nothing_for_frozen_parameters(davit):
    (phase,) = plan(davit, "partial")
    params = params_of(davit)
    optimizer = partition(optax.scale_by_adam(), thaw_groups((phase,)))
    trainable = {path: params[path] for path in phase.trainable}
    slots = jax.tree.leaves(jax.eval_shape(optimizer.init, trainable))
    assert len(slots) == 2 * 168 + 1  # both moments of what trains, and Adam's count
    assert sum(leaf.size for leaf in slots) == 2 * 27_273_601 + 1


def test_the_partitioned_update_equals_the_plain_optimizers():
    params, grads = {"a": jnp.ones(3)}, {"a": jnp.arange(3.0)}
    plain, ours = optax.scale_by_adam(), partition(optax.scale_by_adam(), {"a": 0})
    expected, _ = plain.update(grads, plain.init(params), params)
    got, _ = ours.update(grads, ours.init(params), params)
    assert got.keys() == {"a"}
    assert got["a"].tolist() == expected["a"].tolist()


def test_thawed_parameters_take_steps_of_their_learning_rate_and_the_others_go_on_as_they_were():
    rng = np.random.default_rng(0)
    adam, steps = optax.scale_by_adam(), 40
    params = {path: jnp.zeros(50) for path in ("head", "trunk")}
    gradients = [
        {p: jnp.asarray(rng.normal(0.3, 1, 50), jnp.float32) for p in params}
        for _ in range(steps + 1)
    ]
    head = partition(adam, {"head": 0})
    state = head.init({"head": params["head"]})
    alone = adam.init({"head": params["head"]})
    for gradient in gradients[:steps]:
        _, state = head.update({"head": gradient["head"]}, state)
        _, alone = adam.update({"head": gradient["head"]}, alone)
    both = partition(adam, {"head": 0, "trunk": 1})
    updates, after = both.update(gradients[-1], carry_over(state, both.init(params)))
    expected, _ = adam.update({"head": gradients[-1]["head"]}, alone)
    np.testing.assert_array_equal(updates["head"], expected["head"])
    assert float(jnp.abs(updates["trunk"]).max()) <= 1.05
    counts = {n: int(s.inner_state.count) for n, s in after.inner_states.items() if n in "01"}
    assert counts == {"0": steps + 1, "1": 1}
    # With the count of a long-trained head, the same gradient would move the trunk much further.
    shared = optax.ScaleByAdamState(
        count=jnp.asarray(1000), mu={"trunk": jnp.zeros(50)}, nu={"trunk": jnp.zeros(50)}
    )
    jump, _ = adam.update({"trunk": gradients[-1]["trunk"]}, shared)
    assert float(jnp.abs(jump["trunk"]).max()) > 2


# XLA counts no operation of a foreign call.
@native.setting("off")
def test_the_compiled_step_costs_less_the_longer_the_frozen_prefix():
    costs = []
    sizes = {name: sizes[:2] for name, sizes in SMALL_DAVIT.items() if name != "drop_path_rate"}
    for regime, until in (("full", ""), ("partial", "stages/0"), ("head_only", "")):
        model = abstract("davit_tiny", **sizes, drop_path_rate=0.3)
        (phase,) = plan(model, regime, until=until)
        disable_regularisation_in_frozen_layers(model, phase.labels)
        graphdef, _ = nnx.split(model, nnx.Param)
        params = params_of(model)
        trainable = {path: params[path] for path in phase.trainable}
        frozen = {path: leaf for path, leaf in params.items() if path not in trainable}
        optimizer = partition(optax.scale_by_adam(), thaw_groups((phase,)))
        step = make_train_step(graphdef, IMAGENET, optimizer)
        batch = {
            "image": jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((4,), jnp.float32),
        }
        state = jax.eval_shape(optimizer.init, trainable)
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        lowered = step.lower(trainable, frozen, state, zero_sums(), batch, rate, jax.random.key(0))
        compiled = lowered.compile(quickly())  # operations and memory are settled before
        flops = compiled.cost_analysis()["flops"]
        costs.append((flops, compiled.memory_analysis().temp_size_in_bytes))
    flops, memory = zip(*costs, strict=True)
    assert flops[0] > flops[1] > flops[2]
    assert memory[0] > memory[1] > memory[2]
    # A forward pass is a third of a training step, or a little less.
    assert flops[2] < 0.45 * flops[0]
