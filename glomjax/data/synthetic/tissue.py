"""The structures of a kidney cortex, drawn as amounts of three dyed substances.

A canvas is a Pillow image at twice the final resolution whose three channels hold, from 0 to 255,
the amount of (cytoplasm and fibres, chromatin, basement membrane) instead of red, green and blue.
`drawing.py` stains it afterwards. Coordinates and radii are (x, y) in pixels of the final image.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw

SIZE = 280
_SCALE = 2
_PALE = (8, 0, 4)
_PLASMA = (26, 0, 8)
_INTERSTITIUM = (105, 6, 22)
_TUFT_NUCLEUS = 3.8  # px; dense enough to be seen at a third of the resolution, too
_LOOP_SPACING = 10.5  # px between neighbouring capillary loops


def new_canvas() -> Image.Image:
    return Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), _INTERSTITIUM)


def cortex(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Covers the canvas with tubules on a stretched, jittered hexagonal grid, and interstitium."""
    draw = ImageDraw.Draw(canvas)
    spacing = rng.uniform(38, 60)
    stretch = rng.uniform(1.0, 1.9)
    angle = rng.uniform(0, np.pi)
    open_lumen = rng.uniform(0.2, 0.62)
    nuclei(draw, rng, rng.uniform(0, SIZE, (rng.integers(40, 160), 2)), 2.6, elongation=1.9)
    epithelium = []
    rows = int(340 / spacing / 0.866 / 2) + 1
    columns = int(340 / spacing / 2) + 1
    for row in range(-rows, rows + 1):
        for column in range(-columns, columns + 1):
            x, y = spacing * (column + 0.5 * (row % 2)), spacing * 0.866 * row
            grid = np.array([x * stretch, y]) + rng.normal(0, 0.07 * spacing, 2)
            centre = SIZE / 2 + _rotation(angle) @ grid
            reach = 0.55 * spacing * stretch
            if np.any(centre < -reach) or np.any(centre > SIZE + reach) or rng.random() < 0.06:
                continue
            radius = spacing * rng.uniform(0.41, 0.5)
            lumen = np.clip(open_lumen + rng.normal(0, 0.12), 0.1, 0.75)
            turned = angle + rng.normal(0, 0.15)
            epithelium.append(_tubule(draw, rng, centre, radius, lumen, stretch, turned))
    nuclei(draw, rng, np.concatenate(epithelium), 3.0, elongation=1.2)


def glomerulus(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> None:
    """A lobulated tuft of `radius` around `centre` in a Bowman's capsule with its pale space."""
    _capsule(canvas, rng, centre, radius)
    draw = ImageDraw.Draw(canvas)
    lobes, shift, warp = rng.integers(5, 9), *rng.uniform(0, 2 * np.pi, 2)

    def reach(turn: np.ndarray) -> np.ndarray:
        uneven = turn + 0.35 * np.sin(turn + warp)
        return radius * (0.86 + 0.17 * np.abs(np.cos(lobes * uneven / 2 + shift)))

    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    outline = reach(turn)[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    _polygon(draw, centre + outline, (108, 20, 52))
    _clefts(draw, rng, centre, outline)
    # Loops sit on a jittered grid, so that lumina and nuclei alternate at one spatial frequency.
    spacing = _LOOP_SPACING * rng.uniform(0.92, 1.12)
    loops = _grid_in_disc(rng, radius, spacing)
    loops = loops[np.hypot(*loops.T) < 0.95 * reach(np.arctan2(loops[:, 1], loops[:, 0]))]
    between = loops + spacing * np.array([0.5, 0.29]) + rng.normal(0, 0.16 * spacing, loops.shape)
    between = between[np.hypot(*between.T) < reach(np.arctan2(between[:, 1], between[:, 0]))]
    count = len(loops)
    size, angles = rng.uniform(0.24, 0.36, (count, 1)) * spacing, rng.uniform(0, np.pi, count)
    longer = rng.uniform(1.0, 2.4, (count, 1))
    for wall, lumen in zip(
        _ovals(centre + loops, size + 1.2, longer, angles),
        _ovals(centre + loops, size, longer, angles),
        strict=True,
    ):
        draw.polygon(wall, fill=(105, 14, 150))
        draw.polygon(lumen, fill=_PLASMA)
    nuclei(draw, rng, centre + between, _TUFT_NUCLEUS, elongation=1.3)


def tuft_nuclei(radius: float) -> int:
    """About how many nuclei `glomerulus` draws, for look-alikes that need as many."""
    return int(0.93 * np.pi * radius**2 / (0.866 * _LOOP_SPACING**2))


def filled_capsule(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> None:
    """A capsule with its pale space, filled with the ordinary tissue that was there before."""
    before = canvas.copy()
    _capsule(canvas, rng, centre, radius)
    inner = Image.new("1", canvas.size)
    _polygon(ImageDraw.Draw(inner), _blob(rng, centre, radius, wobble=0.05), 1)
    canvas.paste(before, mask=inner)


def cyst(canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float) -> None:
    """A dilated tubule: a flat epithelium around a pale rim and a smooth pink cast."""
    draw = ImageDraw.Draw(canvas)
    outline = _blob(rng, centre, radius * 1.08, rng.uniform(1, 1.2), rng.uniform(0, np.pi), 0.04)
    _polygon(draw, outline, (90, 10, 150))
    _polygon(draw, _about(centre, outline, 0.96), (150, 8, 30))
    _polygon(draw, _about(centre, outline, 0.86), _PALE)
    _polygon(draw, _about(centre, outline, rng.uniform(0.3, 0.78)), (125, 6, 40))
    rim = _about(centre, outline, 0.91)
    nuclei(draw, rng, rim[:: rng.integers(2, 4)], 3.2, elongation=1.5)


def artery(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> None:
    """Concentric smooth muscle with spindle nuclei along it, around an open lumen."""
    draw = ImageDraw.Draw(canvas)
    outline = _blob(rng, centre, radius * 1.05, rng.uniform(1, 1.3), rng.uniform(0, np.pi), 0.05)
    _polygon(draw, outline, (105, 10, 60))
    lumen = rng.uniform(0.3, 0.55)
    for ring in np.arange(0.97, lumen, -0.07):
        _polygon(draw, _about(centre, outline, ring), (85, 8, 95))
        _polygon(draw, _about(centre, outline, ring - 0.025), (150, 10, 30))
    along = rng.uniform(0, 2 * np.pi, tuft_nuclei(radius) // 3)
    spread = np.sqrt(rng.uniform(lumen**2, 1, len(along)))
    places = centre + radius * spread[:, None] * np.stack([np.cos(along), np.sin(along)], 1)
    nuclei(draw, rng, places, 2.4, elongation=2.6, angles=along + np.pi / 2)
    _polygon(draw, _about(centre, outline, lumen + 0.03), (90, 8, 150))
    _polygon(draw, _about(centre, outline, lumen), _PALE)


def infiltrate(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float, count: int
) -> None:
    """`count` inflammatory cells that thin out from `centre`, with no loops between them."""
    places = rng.normal(0, radius * 0.55, (2 * count, 2)) + centre
    # Cells infiltrate tissue and do not float in a lumen.
    column, row = np.clip(places * _SCALE, 0, SIZE * _SCALE - 1).astype(int).T
    solid = np.asarray(canvas)[row, column, 0] > 2 * _PALE[0]
    nuclei(ImageDraw.Draw(canvas), rng, places[solid][:count], _TUFT_NUCLEUS, elongation=1.15)


def nuclei(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    places: np.ndarray,  # [N, 2]
    size: float,
    *,
    elongation: float,
    angles: np.ndarray | None = None,  # [N] of the long axis; random by default
) -> None:
    """Dark ellipses of about `size` px radius."""
    count = len(places)
    if angles is None:
        angles = rng.uniform(0, 2 * np.pi, count)
    sizes = size * rng.uniform(0.8, 1.2, (count, 1))
    longer = elongation * rng.uniform(0.85, 1.2, (count, 1))
    tones = rng.integers(150, 235, count).tolist()
    for outline, tone in zip(_ovals(places, sizes, longer, angles), tones, strict=True):
        draw.polygon(outline, fill=(60, tone, 20))


def _tubule(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    lumen: float,
    aspect: float,
    angle: float,
) -> np.ndarray:
    """Draws all but the nuclei of a tubule and gives their places [N, 2]."""
    # `_blob` keeps the area, so that a stretched tubule fills its stretched grid cell.
    outline = _blob(rng, centre, radius * np.sqrt(aspect), aspect, angle, 0.06, 24)
    cytoplasm = int(rng.uniform(125, 190))
    _polygon(draw, outline, (95, 8, 140))
    _polygon(draw, _about(centre, outline, 0.94), (cytoplasm, 14, 20))
    ragged = 1 + rng.uniform(-0.18, 0.18, (len(outline), 1))
    _polygon(draw, centre + (outline - centre) * lumen * ragged, _PALE)
    count = int(2 * np.pi * radius * np.sqrt(aspect) / rng.uniform(11, 17))
    ring = outline[np.arange(count) * len(outline) // count]
    depth = rng.normal((lumen + 1.15) / 2, 0.05, (count, 1))
    return centre + (ring - centre) * np.minimum(depth, 0.86)


def _capsule(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> None:
    # The space is a crescent: the tuft hangs nearer to one side.
    space = rng.uniform(0.05, 0.2) * radius
    side = rng.uniform(0, 2 * np.pi)
    middle = centre + 0.75 * space * np.array([np.cos(side), np.sin(side)])
    outline = _blob(rng, middle, radius + space, wobble=0.02)
    draw = ImageDraw.Draw(canvas)
    _polygon(draw, _about(middle, outline, 1 + 5 / radius), _INTERSTITIUM)
    _polygon(draw, _about(middle, outline, 1 + 2 / radius), (100, 12, 170))
    _polygon(draw, outline, _PALE)
    nuclei(draw, rng, outline[:: rng.integers(3, 6)], 2.4, elongation=2.2)


def _clefts(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, centre: np.ndarray, outline: np.ndarray
) -> None:
    # Urinary space reaches in between the lobules, where the outline turns inwards.
    reach = np.hypot(*outline.T)
    inwards = (reach < np.roll(reach, 1)) & (reach <= np.roll(reach, -1))
    for start in outline[inwards]:
        stop = start @ _rotation(rng.normal(0, 0.3)) * rng.uniform(0.3, 0.8)
        ends = np.concatenate([centre + start, centre + stop]) * _SCALE
        draw.line(ends.tolist(), fill=_PALE, width=int(rng.integers(4, 9)))


def _grid_in_disc(rng: np.random.Generator, radius: float, spacing: float) -> np.ndarray:
    steps = np.arange(-int(radius / spacing * 1.2) - 1, int(radius / spacing * 1.2) + 2)
    row, column = np.meshgrid(steps, steps, indexing="ij")
    points = np.stack([column + 0.5 * (row % 2), 0.866 * row], -1).reshape(-1, 2) * spacing
    points = points @ _rotation(rng.uniform(0, np.pi)).T
    points = points + rng.normal(0, 0.17 * spacing, points.shape)
    return points[np.hypot(*points.T) < radius]


@functools.cache
def _circle(points: int) -> tuple[np.ndarray, np.ndarray]:
    """The unit circle [points, 2] and its waves [points, 8] of 2 to 5 periods."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)[:, None]
    waves = np.arange(2, 6)
    unevenness = np.concatenate([np.cos(turn * waves), np.sin(turn * waves)], 1)
    unevenness /= np.sqrt(np.tile(waves, 2))
    return np.concatenate([np.cos(turn), np.sin(turn)], 1), unevenness


def _blob(
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    aspect: float = 1.0,
    angle: float = 0.0,
    wobble: float = 0.05,
    points: int = 40,
) -> np.ndarray:
    """A closed wavy outline [points, 2]: an ellipse of the area of a disc of `radius`."""
    circle, waves = _circle(points)
    reach = radius * (1 + waves @ rng.normal(0, 0.7 * wobble, 8))
    stretched = circle * reach[:, None] * (np.sqrt(aspect), 1 / np.sqrt(aspect))
    return centre + stretched @ _rotation(angle).T


def _ovals(
    places: np.ndarray,  # [N, 2]
    sizes: np.ndarray,  # [N, 1]
    elongation: np.ndarray,  # [N, 1]
    angles: np.ndarray,  # [N]
) -> list[list[float]]:
    """Small ellipses as polygons on the canvas: x0, y0, x1, y1, ..."""
    circle, _ = _circle(9)
    long = sizes * np.sqrt(elongation) * circle[:, 0]  # [N, 9]
    short = sizes / np.sqrt(elongation) * circle[:, 1]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    outlines = np.stack([long * cos - short * sin, long * sin + short * cos], -1)  # [N, 9, 2]
    return ((outlines + places[:, None]) * _SCALE).reshape(len(places), 18).tolist()


def _rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _about(centre: np.ndarray, outline: np.ndarray, factor: float) -> np.ndarray:
    return centre + (outline - centre) * factor


def _polygon(
    draw: ImageDraw.ImageDraw, outline: np.ndarray, fill: tuple[int, int, int] | int
) -> None:
    draw.polygon((outline * _SCALE).ravel().tolist(), fill=fill)
