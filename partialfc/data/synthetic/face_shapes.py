"""Heads as lists of flat colored polygons.

The identity defines geometry, marks and colors; the image defines expression.

Head coordinates: x to the right and y down, each -1 to 1 over the face, z towards the viewer.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialfc.runtime import counter_rng

Polygon = NDArray[np.float64]  # `[n, 2]` or `[n, 3]`
Color = NDArray[np.float64]  # `[3]` RGB, 0 to 255
Params = dict[str, float]

# Traits of an identity: each is uniform in its range and independent of the others.
_TRAITS: dict[str, tuple[float, float]] = {
    "head width": (0.66, 0.88),
    "jaw": (0.0, 0.55),  # how much narrower the chin is than the temples
    "squareness": (1.7, 3.2),  # exponent of the outline; 2 is an ellipse
    "ear size": (0.08, 0.22),
    "ear height": (-0.15, 0.25),
    "eye height": (-0.22, 0.1),
    "eye distance": (0.24, 0.42),
    "eye width": (0.1, 0.2),
    "eye opening": (0.05, 0.12),
    "eye tilt": (-0.35, 0.35),
    "iris": (0.045, 0.08),
    "brow height": (0.13, 0.27),  # above the eye
    "brow width": (0.1, 0.24),
    "brow thickness": (0.015, 0.075),
    "brow tilt": (-0.45, 0.45),
    "brow arch": (0.0, 0.12),
    "nose length": (0.25, 0.5),  # below the eyes
    "nose width": (0.07, 0.2),
    "mouth height": (0.3, 0.6),  # from the nose to the chin, as a fraction
    "mouth width": (0.14, 0.36),
    "upper lip": (0.02, 0.09),
    "lower lip": (0.03, 0.11),
    "mouth bow": (-0.08, 0.08),  # corners up or down
    "hair volume": (0.0, 0.25),
    "hair length": (-0.5, 1.3),  # y of its lower end
    "hairline": (-1.05, -0.35),
    "hairline slope": (-0.3, 0.3),
    "hairline arch": (-0.5, 0.5),
    "fringe": (0.0, 0.12),
    "fringe waves": (2.0, 9.0),
    "beard": (-0.9, 0.75),  # at most 0: none; otherwise the covered fraction of the lower face
    "moustache": (-0.1, 0.08),  # thickness; at most 0: none
    "freckles": (-12.0, 24.0),
    "moles": (0.0, 4.0),
    "scar": (-1.0, 1.0),  # above 0: has one
    "blush": (-0.25, 0.25),
    "skin": (0.0, 1.0),  # fair to dark
    "skin warmth": (-1.0, 1.0),
    "hair": (0.0, 1.0),  # black to light
    "hair warmth": (0.0, 1.0),
    "eye color": (0.0, 1.0),
    "lip redness": (0.0, 1.0),
    "lid shade": (0.0, 1.0),
}


class Shape(NamedTuple):
    """Polygons `[n, 3]` in head coordinates, filled with one color."""

    color: Color
    outlines: list[Polygon]


def face_shapes(seed: int, identity: int, view: Params, chance: NDArray[np.float64]) -> list[Shape]:
    """Return the shapes of an identity, from back to front.

    `view`: expression and occlusion of the image, from `render._sample_view`. `chance`: `[8]` uniform
    numbers.
    """
    low, high = np.array(list(_TRAITS.values())).T
    values = low + (high - low) * counter_rng.random_uniform(
        counter_rng.derive_key(seed, "face", identity), np.arange(len(low))
    )
    face = dict(zip(_TRAITS, values.tolist(), strict=True))
    marks = counter_rng.random_uniform(counter_rng.derive_key(seed, "marks", identity), np.arange(128))
    shapes = [*_head(face), *_skin_marks(face, marks), *_eyes(face, view), *_lower_face(face, view)]
    return [*shapes, *_fringe(face), *_occlusion(face, view, chance)]


def _blend(first: Color | tuple[float, ...], second: Color | tuple[float, ...], fraction: float) -> Color:
    return np.asarray(first) * (1 - fraction) + np.asarray(second) * fraction


def _skin(face: Params) -> Color:
    warm = np.array([6.0, 0.0, -8.0]) * face["skin warmth"]
    return _blend((222, 178, 150), (172, 122, 92), face["skin"]) + warm


def _hair(face: Params) -> Color:
    light = _blend((150, 140, 130), (176, 118, 60), face["hair warmth"])
    return _blend((38, 30, 28), light, face["hair"])


def _oval(x: float, y: float, width: float, height: float, tilt: float = 0.0, corners: int = 16) -> Polygon:
    """Return an oval `[corners, 2]` from half width and half height; tilt in radians."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    across, down = width * np.cos(angle), height * np.sin(angle)
    cosine, sine = math.cos(tilt), math.sin(tilt)
    return np.stack([x + cosine * across - sine * down, y + sine * across + cosine * down], 1)


def _outline(face: Params, enlarged: float = 0.0, first: float = 0.0, last: float = 2 * math.pi) -> Polygon:
    """Return `[33, 2]` of the head outline, clockwise in the image from angle `first` to `last`.

    0 is the right temple.
    """
    angle = np.linspace(first, last, 33)
    power = 2 / face["squareness"]
    x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    narrowed = 1 - face["jaw"] * np.clip(y, 0, None) ** 1.5
    return np.stack([x * narrowed * (face["head width"] + enlarged), y * (1 + enlarged)], 1)


def _on_face(face: Params, outline: Polygon, lift: float = 0.0) -> Polygon:
    """Return `[n, 3]`: points on the front of the head, or `lift` in front of it."""
    x, y = outline[:, 0] / face["head width"], outline[:, 1]
    bulge = 0.8 * np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    return np.column_stack([outline, bulge + lift])


def _flat(outline: Polygon, z: float) -> Polygon:
    return np.column_stack([outline, np.full(len(outline), z)])


def _with_mirror(outline: Polygon) -> list[Polygon]:
    """Return a polygon and its mirror image."""
    return [outline, outline * (-1, 1)]


def _head(face: Params) -> list[Shape]:
    skin, hair = _skin(face), _hair(face)
    width, volume = face["head width"], face["hair volume"]
    crown = _outline(face, volume, math.pi, 2 * math.pi)
    low = face["hair length"]
    lengths = np.array([[width + volume, low], [-width - volume, low]])
    neck = np.array([[-0.4, 0.4], [0.4, 0.4], [0.45, 1.6], [-0.45, 1.6]]) * (width, 1)
    ear = _oval(width, face["ear height"], face["ear size"], face["ear size"] * 1.6)
    return [
        Shape(hair * 0.8, [_flat(np.concatenate([crown, lengths]), -0.25)] if volume > 0.04 else []),
        Shape(skin * 0.75, [_flat(neck, -0.2)]),
        Shape(skin * 0.88, [_flat(one, -0.1) for one in _with_mirror(ear)]),
        Shape(skin, [_flat(_outline(face), 0.0)]),
    ]


def _skin_marks(face: Params, marks: NDArray[np.float64]) -> list[Shape]:
    """Return blush, beard, freckles, moles and a scar; `marks`: `[128]` uniform numbers."""
    skin, width = _skin(face), face["head width"]
    freckles = max(0, int(face["freckles"]))
    spots = marks[:96].reshape(48, 2) * (1.5 * width, 0.75) - (0.75 * width, 0.25)  # `[48, 2]` on the face
    dots = [_on_face(face, _oval(x, y, 0.025, 0.025, corners=6)) for x, y in spots[4 : 4 + freckles]]
    moles = [_on_face(face, _oval(x, y, 0.05, 0.05, corners=8)) for x, y in spots[: int(face["moles"])]]
    x, y, tilt = marks[100] * width - width / 2, marks[101] * 1.1 - 0.6, marks[102] * math.pi
    scar = [_on_face(face, _oval(x, y, 0.2, 0.022, tilt, 8))] if face["scar"] > 0 else []
    cheek = _oval(0.55 * width, 0.25, 0.16, 0.13)
    blush = skin * (1 + face["blush"] * np.array([0.4, 1.0, 0.8]) * -1)
    return [
        Shape(blush, [_on_face(face, one) for one in _with_mirror(cheek)]),
        Shape(_blend(skin, _hair(face), 0.75), _beard(face)),
        Shape(skin * 0.72, dots),
        Shape(skin * 0.35, moles),
        Shape(_blend(skin, (250, 215, 205), 0.7), scar),
    ]


def _beard(face: Params) -> list[Polygon]:
    if face["beard"] <= 0:
        return []
    jaw = _outline(face, 0.0, 0.12 * math.pi, 0.88 * math.pi)
    inner = jaw[::-1] * (0.95 - face["beard"] * 0.55, 0.98 - face["beard"] * 0.45)
    return [_on_face(face, np.concatenate([jaw, inner]))]


def _eyes(face: Params, view: Params) -> list[Shape]:
    skin, hair = _skin(face), _hair(face)
    x, y, width, tilt = face["eye distance"], face["eye height"], face["eye width"], face["eye tilt"]
    opening = face["eye opening"] * view["eyes"]
    lid = _oval(x, y - 0.25 * opening, width * 1.25, opening * 1.5, tilt)
    eye = _oval(x, y, width, opening, tilt)
    iris = _blend((40, 28, 20), (90, 130, 150), face["eye color"])
    radius = face["iris"]
    middles = [x + view["gaze"] * radius, -x + view["gaze"] * radius]
    irises = [_on_face(face, _oval(at, y, radius, min(radius, opening), corners=12)) for at in middles]
    pupils = [_on_face(face, _oval(at, y, radius / 2, min(radius, opening) / 2, corners=8)) for at in middles]
    along = np.linspace(-1, 1, 9)
    brow_y = y - face["brow height"] - view["brows"] + face["brow tilt"] * along * face["brow width"]
    brow_y -= face["brow arch"] * (1 - along**2)
    thickness = face["brow thickness"] * (1.2 - 0.5 * along)
    upper = np.stack([x + along * face["brow width"], brow_y - thickness], 1)
    lower = np.stack([x + along * face["brow width"], brow_y + thickness], 1)[::-1]
    brow = np.concatenate([upper, lower])
    return [
        Shape(skin * (1 - 0.35 * face["lid shade"]), [_on_face(face, one) for one in _with_mirror(lid)]),
        Shape(np.array([236.0, 232, 228]), [_on_face(face, one) for one in _with_mirror(eye)]),
        Shape(iris, irises),
        Shape(iris * 0.2, pupils),
        Shape(hair * 0.85, [_on_face(face, one, 0.03) for one in _with_mirror(brow)]),
    ]


def _lower_face(face: Params, view: Params) -> list[Shape]:
    """Return nose, moustache and mouth."""
    skin = _skin(face)
    y, width = face["eye height"] + face["nose length"], face["nose width"]
    bridge, side = face["eye height"] + 0.02, 0.5 * width
    nose = np.array([[0.3 * side, bridge], [width, y - 0.03], [0.7 * width, y + 0.03], [0.2 * width, y]])
    shade = np.concatenate([nose, nose[::-1] * (-1, 1)])
    tip = _oval(0, y - 0.04, 0.6 * width, 0.07)
    nostril = _oval(0.55 * width, y + 0.015, 0.25 * width, 0.022, corners=8)
    mouth_y = y + (1 - y) * face["mouth height"]
    along = np.linspace(-1, 1, 11)
    arc = (face["mouth bow"] + view["smile"]) * (1 - along**2)  # the middle is lower than the corners
    opening, belly = max(0.0, view["mouth opening"]), np.sqrt(1 - along**2)
    across = along * face["mouth width"]
    line = mouth_y + arc
    upper, lower = line - face["upper lip"] * belly, line + (face["lower lip"] + opening) * belly
    lips = np.concatenate([np.stack([across, upper], 1), np.stack([across, lower], 1)[::-1]])
    thin = 0.012 + opening * belly
    gap = np.concatenate([np.stack([across, line - 0.012], 1), np.stack([across, line + thin], 1)[::-1]])
    moustache = _oval(0, (y + mouth_y) / 2, face["mouth width"] * 1.1, max(0.0, face["moustache"]))
    lip = _blend(skin * 0.8, (176, 62, 70), face["lip redness"])
    return [
        Shape(skin * 0.84, [_on_face(face, shade, 0.1)]),
        Shape(skin * 1.06, [_on_face(face, tip, 0.2)]),
        Shape(skin * 0.4, [_on_face(face, one, 0.15) for one in _with_mirror(nostril)]),
        Shape(_hair(face) * 0.9, [_on_face(face, moustache, 0.06)] if face["moustache"] > 0 else []),
        Shape(lip, [_on_face(face, lips, 0.04)]),
        Shape(lip * 0.35, [_on_face(face, gap, 0.04)]),
    ]


def _fringe(face: Params) -> list[Shape]:
    width, volume = face["head width"], face["hair volume"]
    crown = _outline(face, 0.4 * volume + 0.02, 1.03 * math.pi, 1.97 * math.pi)
    along = np.linspace(1, -1, 33)
    hairline = face["hairline"] + face["hairline slope"] * along + face["hairline arch"] * (along**2 - 0.5)
    hairline += face["fringe"] * np.sin(face["fringe waves"] * along)
    top = np.interp(along * width, crown[:, 0], crown[:, 1])
    lower = np.stack([along * width, np.maximum(top, hairline)], 1)
    return [Shape(_hair(face), [_on_face(face, np.concatenate([crown, lower]), 0.05)])]


def _occlusion(face: Params, view: Params, chance: NDArray[np.float64]) -> list[Shape]:
    """Return dark glasses, a bar or a blob, or nothing; `chance`: `[8]` uniform numbers."""
    kind, color = view["occlusion"], chance[:3] * 230
    x, y, tilt = chance[3] * 2 - 1, chance[4] * 2 - 1, chance[5] * math.pi
    if kind < 0.08:
        lens = _oval(face["eye distance"], face["eye height"], 0.24, 0.17)
        bridge = _oval(0, face["eye height"] - 0.05, face["eye distance"], 0.02, corners=8)
        outlines = [_on_face(face, one, 0.15) for one in [*_with_mirror(lens), bridge]]
        return [Shape(color * 0.3, outlines)]
    if kind < 0.16:
        return [Shape(color, [_flat(_oval(x, y, 2.0, 0.06 + 0.08 * chance[6], tilt, 4), 0.9)])]
    if kind < 0.24:
        return [Shape(color, [_flat(_oval(x, y, 0.2 + 0.2 * chance[6], 0.15 + 0.2 * chance[7], tilt), 0.9)])]
    return []
