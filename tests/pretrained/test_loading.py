"""Strict loading: what does not fit is named, all of it at once, and nothing is written."""

import contextlib
import pathlib
import pickle
import struct
import zlib

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from glomjax.errors import UserError
from glomjax.models import create_model, params_of, set_params
from glomjax.pretrained import load_weights, read_weights, write_weights

DATA = pathlib.Path(__file__).parents[1] / "data"
KECAM = DATA / "davit_kecam" / "kecam_davit.h5"
TIMM = DATA / "davit_timm" / "timm_davit.safetensors"


def small(num_classes=5, preset="msft", **options):
    """A small DaViT, every parameter 0.5 (random ones would take longer than the tests)."""
    sizes = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (2, 4, 8, 16)}
    options = {"num_classes": num_classes, "preset": preset} | sizes | options
    model = nnx.eval_shape(lambda: create_model("davit_tiny", rngs=nnx.Rngs(0), **options))
    half = {path: np.full(leaf.shape, 0.5, np.float32) for path, leaf in params_of(model).items()}
    set_params(model, {path: jnp.asarray(value) for path, value in half.items()})
    return model


@pytest.fixture
def state():
    return safetensors.numpy.load_file(TIMM)


@pytest.fixture
def saved(tmp_path):
    def save(tensors, name="weights.safetensors"):
        safetensors.numpy.save_file(tensors, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="module")
def five_classes():
    """One model for the tests in which loading is refused: none of them may change it."""
    model = small()
    before = {path: np.asarray(leaf) for path, leaf in params_of(model).items()}
    yield model
    after = params_of(model)
    assert all(np.array_equal(before[path], after[path]) for path in before)


# --- what does not fit


def test_every_difference_is_listed_in_one_error(five_classes, state, saved):
    state["stages.0.blocks.0.0.norm1.wieght"] = state.pop("stages.0.blocks.0.0.norm1.weight")
    state["extra.weight"] = np.zeros(3, np.float32)
    state["stem.conv.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError) as caught:
        load_weights(five_classes, saved(state))
    message = str(caught.value)
    assert "does not fit davit_tiny" in message
    assert "1 missing: stages/0/blocks/0/spatial/norm1/scale" in message
    assert "(nearest: stages.0.blocks.0.0.norm1.wieght)" in message
    assert "2 unexpected: extra.weight, stages.0.blocks.0.0.norm1.wieght" in message
    assert "1 of another shape: stem/conv/bias is (7,) and should be (16,)" in message


def test_a_long_list_is_cut_and_counted():
    deeper = small(depths=(1, 1, 3, 1))
    with pytest.raises(UserError, match=r"32 missing: .* and 22 more") as caught:
        load_weights(deeper, TIMM)
    assert len(str(caught.value)) < 600


def test_several_long_lists_share_the_room_of_one(five_classes, state, saved):
    names = list(state)
    for name in names[:40]:
        state[f"x{name}"] = state.pop(name)
    for name in names[40:80]:
        state[name] = state[name][None]
    with pytest.raises(UserError) as caught:
        load_weights(five_classes, saved(state))
    message = str(caught.value)
    assert "40 missing: " in message
    assert "40 unexpected: " in message
    assert "40 of another shape: " in message
    assert message.count(" more") == 3
    assert len(message) < 600


def test_a_head_of_another_class_count_names_the_way_out():
    with pytest.raises(UserError, match=r"head/kernel is \(128, 5\) and .*\(128, 1\).*'head/\.\*'"):
        load_weights(small(num_classes=1), TIMM)


def test_a_tensor_of_another_rank_is_a_shape_error(five_classes, state, saved):
    state["head.fc.weight"] = state["head.fc.weight"][:, :, None, None]
    with pytest.raises(UserError, match=r"head/kernel is \(5, 128, 1, 1\) and should be"):
        load_weights(five_classes, saved(state))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(five_classes, state, saved, value):
    state["stages.3.blocks.0.1.mlp.fc1.bias"][3] = value
    with pytest.raises(UserError, match=r"not finite .* in stages/3/blocks/0/channel/mlp/fc1/bias"):
        load_weights(five_classes, saved(state))


def test_other_number_formats_are_refused(five_classes, state, saved):
    state["head.fc.bias"] = state["head.fc.bias"].astype(np.float64)
    with pytest.raises(UserError, match=r"not float32: head/bias \(float64\)"):
        load_weights(five_classes, saved(state))


# --- exclude


def test_excluded_leaves_keep_their_initial_value_and_all_others_load():
    model = small(num_classes=1)
    before = params_of(model)
    report = load_weights(model, TIMM, exclude=("head/.*",))
    after = params_of(model)
    weights, _ = read_weights(TIMM)
    assert set(report.excluded) == {"head/bias", "head/kernel"}
    for path in before:
        expected = before[path] if path.startswith("head/") else weights[path]
        np.testing.assert_array_equal(after[path], expected, err_msg=path)


def test_a_file_without_a_head_loads_when_the_head_is_excluded(state, saved):
    headless = {key: value for key, value in state.items() if not key.startswith("head.fc")}
    report = load_weights(small(num_classes=1), saved(headless), exclude=("head/.*",))
    assert len(report.loaded) == 178


def test_a_model_without_a_head_takes_the_rest_of_a_file_with_one():
    report = load_weights(small(num_classes=0), TIMM, exclude=("head/.*",))
    assert len(report.loaded) == 178
    assert report.excluded == ()


@pytest.mark.parametrize("pattern", ["heda/.*", "head"])
def test_an_exclude_that_matches_nothing_is_an_error(five_classes, pattern):
    with pytest.raises(
        UserError, match=f"exclude '{pattern[:4]}.* matches none of the 180 tensors"
    ):
        load_weights(five_classes, TIMM, exclude=(pattern,))


def test_an_exclude_that_is_no_regex_is_an_error(five_classes):
    with pytest.raises(UserError, match=r"exclude 'head\(' is not a regular expression"):
        load_weights(five_classes, TIMM, exclude=("head(",))


# --- presets


@pytest.mark.parametrize(
    ("source", "theirs", "ours"), [(KECAM, "kecam", "msft"), (TIMM, "msft", "kecam")]
)
def test_weights_of_another_preset_are_refused_unless_allowed(source, theirs, ours):
    model = small(preset=ours)
    with pytest.raises(UserError, match=f"preset '{theirs}' .* preset '{ours}': .* outputs would"):
        load_weights(model, source)
    assert load_weights(model, source, preset_mismatch="allow").preset == theirs


def test_our_own_layout_carries_the_preset_of_its_weights(tmp_path):
    weights, info = read_weights(KECAM)
    write_weights(tmp_path / "ours.safetensors", weights, info.spec)
    with pytest.raises(UserError, match="preset 'kecam'"):
        load_weights(small(preset="msft"), tmp_path / "ours.safetensors")
    report = load_weights(small(preset="kecam"), tmp_path / "ours.safetensors")
    assert len(report.loaded) == 180


# --- bad files


def damaged(tmp_path, source, edit):
    body = bytearray(source.read_bytes())
    path = tmp_path / source.name
    path.write_bytes(edit(body))
    return path


@pytest.mark.parametrize("source", [KECAM, TIMM], ids=["h5", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 100, 5000, 200_000, -1])
def test_a_truncated_file_is_one_sentence(tmp_path, source, keep):
    path = damaged(tmp_path, source, lambda body: body[:keep])
    with pytest.raises(UserError, match=r"is damaged or incomplete|is empty|neither") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [KECAM, TIMM], ids=["h5", "safetensors"])
def test_flipped_bits_in_the_structure_never_escape_as_another_error(tmp_path, source):
    positions = np.random.default_rng(0).integers(0, 4000, size=15)
    for position in positions:

        def flip(body, at=position):
            body[at] ^= 0x10
            return body

        path = damaged(tmp_path, source, flip)
        # Some bits are padding, or part of a name that is then an unknown one.
        with contextlib.suppress(UserError):
            read_weights(path)


@pytest.mark.parametrize("name", ["weights.h5", "weights.safetensors", "weights.pth"])
def test_a_pickle_is_refused_under_any_name_and_never_run(tmp_path, name):
    class Boom:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was run')",))

    path = tmp_path / name
    path.write_bytes(pickle.dumps({"weights": Boom()}))
    with pytest.raises(UserError, match=r"is a pickle .* convert it to \.safetensors"):
        read_weights(path)


def test_a_header_that_claims_an_exabyte_is_refused(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{" + b" " * 100)
    with pytest.raises(UserError, match=f"header claims {2**60} bytes"):
        read_weights(path)


def test_an_h5_shape_far_beyond_the_file_is_refused_without_allocating(tmp_path):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("stem_conv/stem_conv/kernel:0", (2**20, 2**20), "f4", chunks=(64, 64))
    with pytest.raises(UserError, match="claims 4398046511104 bytes and 0 are stored"):
        read_weights(path)


@pytest.mark.parametrize("options", [{"chunks": (64, 64)}, {}])
def test_an_h5_shape_whose_product_overflows_is_refused(tmp_path, options):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        # Of 2^64 values, which h5py's own product makes 0.
        file.create_dataset("a/a/kernel:0", (2**33, 2**31), "u1", **options or {"chunks": (1, 1)})
    with pytest.raises(UserError, match=f"claims {2**64} bytes and 0 are stored"):
        read_weights(path)


def test_an_h5_chunk_far_beyond_the_file_is_refused_without_allocating(tmp_path):
    path = tmp_path / "chunk.h5"
    with h5py.File(path, "w") as file:
        ways = {"maxshape": (None,), "chunks": (2**28,), "compression": "gzip"}
        data = file.create_dataset("a/a/bias:0", (4,), "f4", **ways)
        data.id.write_direct_chunk((0,), zlib.compress(bytes(16)))
    with pytest.raises(UserError, match=f"claims {2**30} bytes and"):
        read_weights(path)


@pytest.mark.parametrize("content", ["a text", h5py.Empty("f4"), np.zeros(2, "V8")])
def test_what_holds_no_numbers_in_an_h5_file_is_refused(tmp_path, content):
    path = tmp_path / "text.h5"
    with h5py.File(path, "w") as file:
        file["stem_conv/stem_conv/bias:0"] = content
    with pytest.raises(UserError, match="stem_conv/stem_conv/bias:0 holds no numbers"):
        read_weights(path)


@pytest.mark.parametrize("prefix", ["x" * 10_000, "\N{TAG LATIN SMALL LETTER A}" * 200, "module."])
def test_absurd_names_of_tensors_are_cut_in_one_short_sentence(five_classes, state, saved, prefix):
    tensors = {f"{prefix}{name}": value for name, value in state.items()}
    with pytest.raises(UserError) as caught:
        load_weights(five_classes, saved(tensors))
    assert len(str(caught.value)) <= 600
    first = dict(list(tensors.items())[:2])
    with pytest.raises(UserError, match="2 missing.* 2 unexpected") as caught:
        load_weights(five_classes, saved(dict(list(state.items())[2:]) | first))
    assert len(str(caught.value)) <= 600


def test_an_absurd_number_format_is_one_short_sentence(tmp_path, state, saved):
    path = saved(state)
    content = path.read_bytes().replace(b'"F32"', b'"F' + b"3" * 10_000 + b'"', 1)
    size = int.from_bytes(content[:8], "little") + 9_998
    path.write_bytes(struct.pack("<Q", size) + content[8:])
    with pytest.raises(UserError, match="damaged or incomplete .*unknown variant") as caught:
        read_weights(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["resnet.h5", "resnet.safetensors"])
def test_the_file_of_another_network_is_named_as_such(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["conv1_conv/conv1_conv/kernel:0"] = np.zeros((7, 7, 3, 64), np.float32)
            file["avg"] = np.zeros(1, np.float32)
    else:
        safetensors.numpy.save_file({"layer1.0.conv1.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"holds no tensor of a DaViT .* another network"):
        read_weights(path)


@pytest.mark.parametrize("exclude", [None, 5, ("head/.*", 5), {"head/.*": 1}])
def test_an_exclude_of_another_kind_is_refused(five_classes, exclude):
    with pytest.raises(UserError, match="exclude is .*; it is regular expressions of paths"):
        load_weights(five_classes, TIMM, exclude=exclude)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(UserError, match="model is of type dict; it is a network as create_model"):
        load_weights({}, TIMM)
