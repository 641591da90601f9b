"""Where in an image a trained network sees a class: as maps, over the image, and whether the maps
come from what it has learnt."""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from glomjax.errors import UserError, quoted, shown
from glomjax.inference.attribution import grad_cam, integrated_gradients, occlusion
from glomjax.inference.images import ImageStream
from glomjax.inference.steps import Params, cast
from glomjax.models import create_model, nest, params_of
from glomjax.ops import native
from glomjax.ops.compilation import compile_options
from glomjax.preprocessing.augmentation import symmetries as symmetric_views
from glomjax.preprocessing.augmentation import undo_symmetries

if TYPE_CHECKING:
    from glomjax.inference.classifier import Classifier
    from glomjax.pretrained.spec import NetworkSpec

METHODS = ("grad_cam", "integrated_gradients", "occlusion")
STEPS = 32  # of integrated gradients
WINDOWS = 7  # of occlusion, side by side
OPACITY = 0.65  # of an overlay where the map is 1


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a map is to say.

    Attributes:
      method: one of `METHODS`.
      target: the number of the class that is explained; None: of each image the predicted one.
    """

    method: str
    target: int | None


def explanation(
    method: str, target: str | None, classes: Sequence[str], networks: int
) -> Explanation:
    """The explanation of a class, by default of two classes the positive one, of more that which is
    predicted.

    Raises:
      UserError: there is no such method or class, or several networks may predict different ones.
    """
    if method not in METHODS:
        raise UserError(f"there is no saliency method {shown(method)}; use {quoted(METHODS)}")
    if target is None:
        if len(classes) != 2 and networks > 1:
            raise UserError(
                "the networks of an ensemble may predict different classes of an image; explain "
                f"one network, or in a script name the class as target, one of {quoted(classes)}"
            )
        return Explanation(method, 1 if len(classes) == 2 else None)
    if target not in classes:
        raise UserError(f"target is {shown(target)}; it is one of the classes {quoted(classes)}")
    return Explanation(method, list(classes).index(target))


def make_saliency_step(
    graphdef: nnx.GraphDef, spec: "NetworkSpec", what: Explanation
) -> Callable[[Params, jax.Array | np.ndarray], jax.Array]:
    """A jit-compiled `step(params, images uint8 [B, H, W, 3]) -> float32 [B, H, W]`: for the class
    where above 0, against it below.

    What is explained is the logit of the class as `make_predict_step` gives it; where two classes
    have one logit, that is the positive class's, and the negative class's is its opposite. The mean
    colour of the image is what integrated gradients start from and what occlusion covers with.
    """

    @native.products_in(spec.precision)
    def step(params: Params, pixels: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, nest(params))
        images = pixels.astype(jnp.float32)

        def seen(images: jax.Array) -> jax.Array:
            return cast(spec.preprocessing(images), spec.precision)

        @jax.checkpoint  # by which the views do not keep what their gradients need all at once
        def logits_of(images: jax.Array) -> jax.Array:
            return model(seen(images)).astype(jnp.float32)

        def logits(images: jax.Array) -> jax.Array:
            if not spec.symmetries:
                return logits_of(images)
            return jnp.mean(jax.lax.map(logits_of, symmetric_views(images)), axis=0)

        target = jnp.argmax(logits(images), axis=1) if what.target is None else what.target

        def cam(images: jax.Array) -> jax.Array:
            return grad_cam(
                lambda x: model.feature_map(seen(x)),
                lambda x: _of_class(model.classify(model.embed_map(x)), target),
                images,
                model.map_grids(),
            )

        def score(images: jax.Array) -> jax.Array:
            return _of_class(logits(images), target)

        mean = jnp.mean(images, axis=(1, 2), keepdims=True)
        if what.method == "integrated_gradients":
            return integrated_gradients(score, images, jnp.broadcast_to(mean, images.shape), STEPS)
        if what.method == "occlusion":
            height, width = (-(-side // WINDOWS) for side in spec.image_size)
            return occlusion(score, images, mean, (height, width))
        if not spec.symmetries:
            return cam(images)
        return jnp.mean(undo_symmetries(jax.lax.map(cam, symmetric_views(images))), axis=0)

    return jax.jit(step, compiler_options=compile_options())


def scaled(values: np.ndarray) -> np.ndarray:
    """What speaks for the class in a map float32 [H, W], and its largest value 1; zeros stay."""
    positive = np.maximum(np.nan_to_num(values, posinf=0.0), 0)
    largest = positive.max(initial=0.0)
    return positive / largest if largest > 0 else np.zeros_like(positive)


def overlay(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """A map laid over its image: the colours of viridis, which grow brighter with it for every eye,
    the more opaque the larger it is, so that the image is as it was where the map is 0.

    Args:
      image: uint8 [H, W, 3].
      saliency: float [H, W], 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    import matplotlib  # here, since it takes long to import

    colours = matplotlib.colormaps["viridis"](saliency)[..., :3] * 255  # [H, W, 3]
    opacity = OPACITY * saliency[..., None]
    return np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)


def overlay_png(image: Image.Image, saliency: np.ndarray) -> bytes:
    """`overlay` of an RGB image, as a PNG."""
    png = io.BytesIO()
    Image.fromarray(overlay(np.asarray(image), saliency)).save(png, "PNG")
    return png.getvalue()


def overlay_name(number: int, image: str) -> str:
    """The file of an overlay: the number of its image, which no other has, and of what the image is
    called as much as any file system takes."""
    called = re.sub(r"[^A-Za-z0-9.-]+", "_", image.removesuffix(".png"))
    return f"{number:06d}_{called[-80:]}.png"


def randomisation_check(
    classifier: "Classifier", images: Any, *, method: str = "grad_cam", draws: int = 3
) -> dict[str, float]:
    """Whether maps come from what the network has learnt: how they keep their order of pixels when
    its layers get fresh initial values, one stage after another from the last to the first.

    The cascading randomisation of Adebayo et al. 2018 (Sanity checks for saliency maps, section 3),
    with Spearman's correlation. Maps that stay alike (near 1) show edges of the image, whatever the
    network is.

    Args:
      classifier: one network.
      images: as `Classifier.predict` takes them; of a stream, a list of images.
      method: one of `METHODS`.
      draws: of initial values, over which the correlations are averaged: those of one draw may be
        high or low by chance, since it may leave the sign of what the network has learnt.

    Returns:
      {stage: correlation}: of the maps before any change and those once this stage and all behind
      it are random, the mean over images and draws; 0 where one of two maps is flat.

    Raises:
      UserError: several networks, or images that cannot be read.
    """
    from scipy.stats import rankdata  # here, since SciPy takes long to import

    if len(classifier.specs) > 1:
        raise UserError("the randomisation check takes one network; name one of the ensemble")
    spec = classifier.spec
    if not isinstance(images, Sequence | np.ndarray | ImageStream):
        images = list(images)

    def ranks(of: "Classifier") -> list[np.ndarray]:
        found = []
        for row, saliency in of.iterate_saliency(images, method):
            if saliency is None:
                raise UserError(row.problem)
            ranked = rankdata(saliency) - (saliency.size + 1) / 2
            length = np.sqrt((ranked**2).sum())
            found.append(ranked / (length if length > 0 else 1))
        return found

    before = ranks(classifier)
    sums: dict[str, float] = {}
    for seed in range(draws):
        model = create_model(
            spec.architecture,
            num_classes=spec.outputs,
            image_size=spec.image_size,
            rngs=nnx.Rngs(seed),
            **spec.options,
        )
        fresh = params_of(model)
        changed: dict[str, jax.Array] = {}
        for stage, paths in reversed(list(_stages(model).items())):
            changed |= {path: fresh[path] for path in paths}
            after = ranks(classifier.with_params(changed))
            pairs = zip(before, after, strict=True)
            mean = float(np.mean([np.sum(a * b) for a, b in pairs]))
            sums[stage] = sums.get(stage, 0.0) + mean
    return {stage: total / draws for stage, total in sums.items()}


def _of_class(logits: jax.Array, target: Any) -> jax.Array:
    """[B, K] -> [B]: the logit of class `target`, a number or one for each image."""
    logits = logits.astype(jnp.float32)
    if logits.shape[1] == 1:
        return logits[:, 0] if target else -logits[:, 0]
    chosen = jnp.broadcast_to(target, logits.shape[:1])
    return jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0]


def _stages(model: Any) -> Mapping[str, list[str]]:
    """{stage: the paths of its parameters} from the input to the logits: the modules of a network,
    and each of those in a list, but for heads that predict nothing."""
    stages: dict[str, list[str]] = {}
    for path in model.forward_order:
        found = re.match(r"[^/]+(/\d+)?", path)
        assert found is not None
        stages.setdefault(found[0], []).append(path)
    return {
        stage: paths
        for stage, paths in stages.items()
        if not any(
            re.fullmatch(model.LOGITS_PATHS, path) and not re.fullmatch(model.HEAD_PATHS, path)
            for path in paths
        )
    }
