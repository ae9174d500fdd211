"""Rendering of a head: pose, light, occlusion, blur and noise of an image."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.data.synthetic.face_shapes import Params, Polygon, Shape, face_shapes
from partialfc.runtime import counter_rng

# Parameters of an image: the easiest value, and the range at difficulty 1.
_VIEWS: dict[str, tuple[float, float, float]] = {
    "yaw": (0, -0.4, 0.4),  # radians
    "pitch": (0, -0.22, 0.22),
    "roll": (0, -0.22, 0.22),
    "shear": (0, -0.07, 0.07),
    "shift x": (0, -0.08, 0.08),  # fraction of the image
    "shift y": (0, -0.08, 0.08),
    "scale": (0.4, 0.35, 0.44),  # fraction of the image, for one unit of head coordinates
    "smile": (0, -0.05, 0.05),
    "mouth opening": (0, -0.08, 0.08),  # at most 0: closed
    "eyes": (1, 0.6, 1.15),  # openness
    "brows": (0, -0.03, 0.05),  # raise
    "gaze": (0, -0.4, 0.4),
    "exposure": (1, 0.5, 1.35),
    "red cast": (1, 0.78, 1.22),
    "blue cast": (1, 0.78, 1.22),
    "unevenness": (0, 0.0, 0.55),  # of the light, from the middle to the edge
    "occlusion": (1, 0.0, 1.0),  # below 0.24: occluded
    "softness": (0, -0.01, 0.014),  # standard deviation of the blur, in image sizes; at most 0: sharp
    "noise": (0, 1.0, 12.0),  # standard deviation, of 255
}
_FOCAL = 6.0  # distance of the viewer, in head coordinates
_OVERSAMPLING = 2
_SUBPIXEL_BITS = 4


def render_image(seed: int, identity: int, image: int, *, size: int, difficulty: float) -> ImageArray:
    """Render image number `image` of an identity, uint8 RGB `[size, size, 3]`: a pure function of the arguments.

    `difficulty` scales the deviation of pose, expression, light, occlusion, blur and noise from their easiest
    values.

    Returns:
        The image.
    """
    chance = counter_rng.random_uniform(counter_rng.derive_key(seed, "scene", identity, image), np.arange(36))
    view = _sample_view(counter_rng.derive_key(seed, "view", identity, image), difficulty)
    canvas = _background(chance[:27], size * _OVERSAMPLING)
    _fill_shapes(canvas, face_shapes(seed, identity, view, chance[27:35]), view)
    picture = images.resize(canvas, size)
    light_from = 2 * math.pi * chance[35]
    return _apply_lighting(picture, view, light_from, counter_rng.derive_key(seed, "noise", identity, image))


def _sample_view(key: int, difficulty: float) -> Params:
    easiest, low, high = np.array(list(_VIEWS.values())).T
    drawn = low + (high - low) * counter_rng.random_uniform(key, np.arange(len(low)))
    return dict(zip(_VIEWS, (easiest + difficulty * (drawn - easiest)).tolist(), strict=True))


def _background(chance: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Return RGB `[side, side, 3]`: one color with four blots of other colors; `chance`: `[27]` uniform numbers."""
    canvas = np.full((side, side, 3), (chance[:3] * 255).astype(np.uint8), np.uint8)
    for x, y, radius, *color in chance[3:].reshape(4, 6).tolist():
        middle = (int(x * side), int(y * side))
        cv2.circle(canvas, middle, int((0.1 + 0.3 * radius) * side), [255 * it for it in color], cv2.FILLED)
    return canvas


def _fill_shapes(canvas: NDArray[np.uint8], shapes: list[Shape], view: Params) -> None:
    """Project the shapes and fill them in order."""
    outlines = [outline for shape in shapes for outline in shape.outlines]
    corners = _project(np.concatenate(outlines), view, len(canvas)) * (1 << _SUBPIXEL_BITS)
    ends = np.cumsum([len(outline) for outline in outlines])
    filled = iter(np.split(np.rint(corners).astype(np.int32), ends[:-1]))
    for shape in shapes:
        color = np.clip(shape.color, 0, 255).tolist()
        for _ in shape.outlines:
            cv2.fillPoly(canvas, [next(filled)], color, cv2.LINE_8, _SUBPIXEL_BITS)


def _project(points: Polygon, view: Params, side: int) -> Polygon:
    """Return pixel coordinates `[n, 2]` of head coordinates `[n, 3]`, for an image of side x side pixels."""
    yaw, pitch, roll = (np.array([math.cos(view[it]), math.sin(view[it])]) for it in ("yaw", "pitch", "roll"))
    turned = np.array([[yaw[0], 0, yaw[1]], [0, 1, 0], [-yaw[1], 0, yaw[0]]])
    nodded = np.array([[1, 0, 0], [0, pitch[0], -pitch[1]], [0, pitch[1], pitch[0]]])
    leant = np.array([[roll[0], -roll[1], 0], [roll[1], roll[0], 0], [0, 0, 1]])
    sheared = np.array([[1, view["shear"], 0], [0, 1, 0], [0, 0, 1]])
    x, y, z = (sheared @ leant @ nodded @ turned) @ points.T
    nearness = _FOCAL / (_FOCAL - z)
    middle = np.array([0.5 + view["shift x"], 0.5 + view["shift y"]])
    return (np.stack([x, y], 1) * nearness[:, None] * view["scale"] + middle) * side


def _apply_lighting(picture: NDArray[np.uint8], view: Params, light_from: float, key: int) -> ImageArray:
    """Apply the light of the image (from an angle in radians), blur and noise."""
    side = len(picture)
    across = np.linspace(-1, 1, side, dtype=np.float32)
    slope = across * math.cos(light_from) + across[:, None] * math.sin(light_from)
    light = max(0.1, view["exposure"]) * (1 + view["unevenness"] * slope)
    cast = np.array([view["red cast"], 1, view["blue cast"]], np.float32)
    seen = (picture * (light[..., None] * cast)).astype(np.float32)
    if view["softness"] > 0:
        seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), view["softness"] * side), np.float32)
    grain = counter_rng.random_bits(key, np.arange(seen.size // 4 + 1)).astype("<u8").view("<u2")[: seen.size]
    noise = (grain.reshape(seen.shape) / 2**16 - 0.5) * math.sqrt(12) * view["noise"]
    return np.clip(seen + noise, 0, 255).astype(np.uint8)
