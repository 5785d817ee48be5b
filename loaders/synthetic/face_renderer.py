"""Draw procedural faces from their parameters, a whole batch at a time, with numpy alone.

A head is a flattened sphere seen from the front. Each pixel inside the outline is lifted to the sphere, turned back by
the pose, and so knows its place on the face: features shift, shrink and hide as those of a solid head do, and its
normal shades it. A picture is a stack of soft-edged layers (surroundings, hair, skin, features, glasses). Instead of
blending them one by one in colour, `render_clean` turns the stack's opacities into the share each layer has in a pixel,
and makes the picture with a matrix product of colours and shares; the skin's texture is a few waves that are added the
same way. The camera comes last: light, exposure, gamma and saturation in `render_clean`, then lens blur, a resolution
that may be lower than the image's, sensor noise and 8-bit values in `expose`.

Arrays are float32, (n, P) with P = H W pixels of n pictures; parameters are (n, 1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adadistill.loaders.synthetic.face_parameters import (
    BACKGROUND_WAVES,
    SKIN_WAVES,
    FloatArray,
    Parameters,
)

_LIGHT_SKIN, _DARK_SKIN = (0.95, 0.78, 0.68), (0.40, 0.26, 0.19)
_LIGHT_HAIR, _DARK_HAIR = (0.80, 0.66, 0.42), (0.07, 0.055, 0.05)
_RED_HAIR = (0.16, -0.02, -0.06)


class _Layers:
    """Opacities (n, P) and colours (n, 3) of a picture, from the back to the front."""

    def __init__(self) -> None:
        self.opacities: list[FloatArray] = []
        self.colours: list[FloatArray] = []

    def put(self, opacity: FloatArray, colour: FloatArray) -> None:
        self.opacities.append(opacity)
        self.colours.append(colour)

    def shares(self) -> tuple[FloatArray, FloatArray]:
        """What is seen of each layer, (n, L, P), and of whatever lies behind all of them, (n, P)."""
        n, pixels = self.opacities[0].shape
        shares = np.empty((n, len(self.opacities), pixels), np.float32)
        behind = np.ones((n, pixels), np.float32)
        for i in range(len(self.opacities) - 1, -1, -1):
            np.multiply(self.opacities[i], behind, out=shares[:, i])
            behind -= shares[:, i]
        return shares, behind


class _Surface:
    """Where each pixel lies: in the frame, in the upright head's plane, and on the face.

    across, down: (1, P) in the frame, [-1, 1]. flat_across, flat_down: (n, P), head upright and centred, in half widths
    and half heights. u, v: (n, P) on the face, pose undone. normal_*: (n, P) towards right, down and the viewer. head:
    (n, P) opacity; scalp: the same a little wider, for the hair on it. pixel: side of a pixel in units of the head's
    half width, (n, 1).
    """

    def __init__(self, face: Parameters, picture: Parameters, image_size: int, pose: float) -> None:
        steps = ((np.arange(image_size, dtype=np.float32) + 0.5) * (2.0 / image_size) - 1.0).astype(np.float32)
        self.across = np.tile(steps, image_size)[None, :]  # (1, P)
        self.down = np.repeat(steps, image_size)[None, :]
        roll, yaw, pitch = (picture[name] * pose for name in ("roll", "yaw", "pitch"))
        zoom = np.exp(-picture["log_scale"] * pose)
        cosine, sine = np.cos(roll) * zoom, np.sin(roll) * zoom
        moved_across = self.across - picture["shift_across"] * pose  # (n, P)
        moved_down = self.down - picture["shift_down"] * pose
        width, height = face["face_width"], face["face_height"]
        self.flat_across = moved_across * (cosine / width) + moved_down * (sine / width)
        self.flat_down = moved_down * (cosine / height) - moved_across * (sine / height)
        self.pixel = (2.0 / image_size) * zoom / width

        lower = np.maximum(self.flat_down, 0.0)
        narrowing = 1.0 - face["jaw_narrowing"] * lower
        x = self.flat_across / narrowing
        lower *= lower
        squared = x * x + self.flat_down * self.flat_down - face["chin_squareness"] * lower * np.abs(x)
        inside = 1.0 - squared
        self.head = _soft(inside, 3.0 * self.pixel)
        self.scalp = _soft(inside + 3.0 * self.pixel, 3.0 * self.pixel)
        x *= np.minimum(1.0, 1.0 / np.sqrt(np.maximum(squared, 1e-6)))  # outside: the nearest point of the outline
        y = self.flat_down * np.minimum(1.0, 1.0 / np.sqrt(np.maximum(squared, 1e-6)))
        z = np.sqrt(np.maximum(inside, 0.0))
        self.normal_across, self.normal_down, self.normal_front = x, y, z
        turned_across = x * np.cos(yaw) - z * np.sin(yaw)
        turned_front = z * np.cos(yaw) + x * np.sin(yaw)
        self.u = turned_across
        self.v = y * np.cos(pitch) - turned_front * np.sin(pitch)


def render_clean(
    face: Parameters,
    skin_waves: FloatArray,
    picture: Parameters,
    background_waves: FloatArray,
    image_size: int,
    *,
    pose: float,
    lighting: float,
    texture: float,
    glasses: float,
    occlusion: float,
) -> FloatArray:
    """Faces as an ideal camera would see them.

    Args:
        face, skin_waves: of `draw_identity`, n rows.
        picture, background_waves: of `draw_picture`, n rows.
        image_size: side of the square images in pixels.
        pose, lighting, texture: strength of the pose, of uneven light and exposure, of the skin's texture; 1 as in the
        tables.
        glasses, occlusion: probability in [0, 1] that something of the kind is in the picture.

    Returns:
        (n, 3, P) float32 RGB, roughly in [0, 1] but not clipped.
    """
    surface = _Surface(face, picture, image_size, pose)
    layers = _Layers()
    _put_hair_behind(layers, surface, face, picture)
    skin = _skin_colour(face)
    _put_neck(layers, surface, skin)
    _put_clothes(layers, surface, picture)
    skin_layer = len(layers.opacities)
    layers.put(surface.head, skin)
    _put_skin_features(layers, surface, face, picture, skin)
    _put_mouth(layers, surface, face, picture, skin)
    _put_eyes(layers, surface, face, picture, skin)
    _put_brows(layers, surface, face, picture)
    _put_hair_in_front(layers, surface, face, picture)
    lit = len(layers.opacities)
    _put_glasses(layers, surface, face, picture, glasses)
    _put_occluder(layers, surface, picture, occlusion)

    shares, behind = layers.shares()
    colours = np.stack(layers.colours, axis=2)  # (n, 3, L)
    brightness, shine = _shading(surface, face, picture, lighting)
    image = np.matmul(skin_waves * (skin * np.float32(0.6 * texture))[:, :, None], _skin_basis(surface))  # (n, 3, P)
    image *= shares[:, skin_layer, None]
    image += np.matmul(colours[:, :, :lit], shares[:, :lit])
    image *= brightness[:, None]
    image += np.matmul(colours[:, :, lit:], shares[:, lit:])
    image += (shine * shares[:, skin_layer])[:, None]
    background = _background(picture, background_waves, image_size)
    background *= behind[:, None]
    image += background
    return _camera_colours(image, picture, lighting)


def expose(clean: FloatArray, quality: FloatArray, noise: FloatArray, image_size: int) -> NDArray[np.uint8]:
    """What a camera of the given quality makes of an ideal picture.

    Lens blur and a coarser resolution are linear and separable, so each picture gets one (H, H) matrix that does both
    in each direction. At quality 1 the picture keeps its resolution with hardly any noise; at quality 0 it is worth
    about 7 x 7 pixels, blurred, with noise of 8 % of the full scale. Blur and resolution are relative to the frame, so
    a given quality looks alike at any image size.

    Args:
        clean: (n, 3, P) float32 from `render_clean`; overwritten.
        quality: (n, 1) float32 in [0, 1].
        noise: (n, 3 P) float32 of variance 1.
        image_size: side in pixels.

    Returns:
        (n, H, W, 3) uint8 RGB.
    """
    lack = 1.0 - quality
    blur = image_size * 0.06 * lack * lack + 0.25  # standard deviation in pixels
    full, least = float(image_size), min(7.0, float(image_size))
    cells = full * (least / full) ** (lack * np.sqrt(np.sqrt(lack)))  # resolution in pixels per side
    degrade = _degrading_matrices(image_size, blur, cells)[:, None]  # (n, 1, H, H)
    n = clean.shape[0]
    picture = clean.reshape(n, 3, image_size, image_size)
    picture = np.matmul(np.matmul(degrade, picture), degrade.transpose(0, 1, 3, 2))
    deviation = 0.008 + 0.09 * lack * lack
    picture += (noise * deviation).reshape(picture.shape)
    picture *= 255.0
    picture += 0.5
    np.clip(picture, 0.0, 255.0, out=picture)
    return np.ascontiguousarray(picture.transpose(0, 2, 3, 1)).astype(np.uint8)


def _soft(signed: FloatArray, edge: FloatArray | float) -> FloatArray:
    """Opacity of the region where `signed` > 0, with an edge that is `edge` wide."""
    opacity = signed / edge
    opacity += np.float32(0.5)
    return np.clip(opacity, 0.0, 1.0, out=opacity)


def _bell(squared_distance: FloatArray) -> FloatArray:
    """A smooth bump, 1 at 0 and about 0 from 4: (1 - d / 8)**8, six times cheaper than exp(-d)."""
    bump = squared_distance * np.float32(-0.125)
    bump += np.float32(1.0)
    np.maximum(bump, 0.0, out=bump)
    bump *= bump
    bump *= bump
    bump *= bump
    return bump


def _colour(red: FloatArray, green: FloatArray, blue: FloatArray) -> FloatArray:
    return np.concatenate([red, green, blue], axis=1)  # (n, 3)


def _between(first: tuple[float, ...], second: tuple[float, ...], position: FloatArray) -> FloatArray:
    """(n, 3) colour at `position` (n, 1) from the first (0) to the second (1)."""
    start, end = np.array(first, np.float32), np.array(second, np.float32)
    return start + position * (end - start)


def _skin_colour(face: Parameters) -> FloatArray:
    skin = _between(_DARK_SKIN, _LIGHT_SKIN, face["skin_lightness"])
    return skin * (1.0 + face["skin_warmth"] * np.array([0.03, -0.02, -0.09], np.float32))


def _hair_colour(face: Parameters) -> FloatArray:
    lightness = face["hair_lightness"] ** 2
    red = np.array(_RED_HAIR, np.float32)
    return _between(_DARK_HAIR, _LIGHT_HAIR, lightness) + face["hair_redness"] * lightness * (1 - lightness) * 4 * red


def _put_clothes(layers: _Layers, surface: _Surface, picture: Parameters) -> None:
    across = surface.across - 0.5 * picture["shift_across"]
    down = (surface.down - picture["clothes_level"] - 0.62) * (1.0 / 0.62)
    colour = _colour(picture["clothes_red"], picture["clothes_green"], picture["clothes_blue"])
    layers.put(_soft(1.0 - 0.9 * across * across - down * down, 0.1), colour)


def _put_neck(layers: _Layers, surface: _Surface, skin: FloatArray) -> None:
    neck = _soft(0.52 - np.abs(surface.flat_across), 2.0 * surface.pixel)
    neck *= surface.flat_down > 0.3
    layers.put(neck, skin * 0.72)


def _put_hair_behind(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters) -> None:
    volume = face["hair_volume"] + picture["hair_volume_change"]
    down = surface.flat_down + 0.06
    down = np.where(down < 0.0, down / volume, down / (face["hair_length"] * picture["hair_length_change"]))
    across = surface.flat_across / volume
    opacity = _soft(1.0 - across * across - down * down, 3.0 * surface.pixel)
    layers.put(opacity, _hair_colour(face) * 0.75)


def _put_skin_features(
    layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters, skin: FloatArray
) -> None:
    """Cheeks, hollows around the eyes, nostrils, beard, marks; everything that only tints the skin."""
    u, v = surface.u, surface.v
    beside = np.abs(u)
    ruddy = skin * np.array([1.02, 0.72, 0.68], np.float32)
    cheek = _bell(((beside - 0.52) / 0.26) ** 2 + ((v - face["cheek_level"]) / 0.17) ** 2)
    layers.put(cheek * (face["cheek_colour"] * 4.0), ruddy)
    hollow = _bell(((beside - face["eye_spacing"]) / 0.24) ** 2 + ((v - face["eye_level"] - 0.04) / 0.12) ** 2)
    layers.put(hollow * face["eye_hollow"], skin * np.array([0.62, 0.52, 0.55], np.float32))
    tip = face["nose_tip"]
    shadow = _bell((u / (face["nostril_spacing"] * 1.6)) ** 2 + ((v - tip - 0.055) / 0.035) ** 2)
    layers.put(shadow * (face["nostril_darkness"] * 0.55), skin * 0.5)
    nostril = _bell(((beside - face["nostril_spacing"]) / 0.055) ** 2 + ((v - tip - 0.02) / 0.032) ** 2)
    layers.put(nostril * face["nostril_darkness"], skin * 0.28)
    beard = np.maximum(face["beard"] + picture["stubble"] * (face["beard"] > 0), 0.0)
    chin = _soft(v + 0.75 * (beside - 0.45) * (beside > 0.45) - face["beard_level"] + 0.1, 0.25)
    layers.put(chin * surface.head * np.minimum(beard, 0.85), _hair_colour(face) * 0.8 + skin * 0.12)
    for i in range(3):
        radius = 1.0 / face[f"mark{i}_radius"]
        spot = _bell(((u - face[f"mark{i}_across"]) * radius) ** 2 + ((v - face[f"mark{i}_down"]) * radius) ** 2)
        layers.put(spot * np.maximum(face[f"mark{i}_darkness"], 0.0), skin * 0.3)


def _put_mouth(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters, skin: FloatArray) -> None:
    across = surface.u / (face["mouth_width"] * picture["mouth_stretch"])
    across *= across
    opening = np.maximum(picture["mouth_opening"], 0.0)
    down = surface.v - face["mouth_level"] + (face["mouth_curve"] + picture["smile"]) * (across - 0.35)
    upper, lower = face["upper_lip"], face["lower_lip"]
    reach = np.where(down < 0.0, down / (upper + opening), down / (lower + opening))
    lips = _soft(1.0 - across - reach * reach, 0.9)
    red = _between((0.95, 0.62, 0.60), (0.92, 0.40, 0.42), face["lip_redness"]) * (1.05 - 0.35 * face["lip_darkness"])
    layers.put(lips, skin * red)
    gap = down / (opening * 0.85 + 0.014)
    inside = _soft(0.92 - across - gap * gap, 0.9)
    layers.put(inside * 0.9, skin * np.array([0.30, 0.16, 0.16], np.float32))


def _put_eyes(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters, skin: FloatArray) -> None:
    u = surface.u
    beside = np.abs(u) - face["eye_spacing"]
    down = surface.v - face["eye_level"]
    slanted = down + face["eye_tilt"] * beside
    width = 1.0 / face["eye_width"]
    height = 1.0 / (face["eye_height"] * picture["eye_openness"])
    almond = 1.0 - (beside * width) ** 2 - (slanted * height) ** 2
    layers.put(_soft(almond + 0.55, 0.9) * face["lid_darkness"], skin * 0.32)
    white = _soft(almond, 1.0)
    layers.put(white * 0.92, _between((0.90, 0.88, 0.86), (0.90, 0.88, 0.86), face["eye_width"]))
    # The gaze moves both irises the same way, so its sign flips in the folded coordinate.
    look = beside - np.sign(u) * picture["gaze"]
    radius = 1.0 / face["iris_radius"]
    taller = face["face_height"] / face["face_width"]
    distance = (look * radius) ** 2 + (down * (radius * taller)) ** 2
    brown = _between((0.13, 0.07, 0.04), (0.48, 0.30, 0.14), face["iris_lightness"])
    blue = _between((0.12, 0.20, 0.28), (0.42, 0.58, 0.66), face["iris_lightness"])
    iris = brown + np.maximum(face["iris_blueness"] * 2.0 - 1.0, 0.0) * (blue - brown)
    layers.put(_soft(1.0 - distance, 1.2) * white, iris)
    layers.put(_bell(distance * 3.0) * white, np.full_like(iris, 0.03))


def _put_brows(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters) -> None:
    beside = (np.abs(surface.u) - face["eye_spacing"] - 0.02) / face["brow_width"]
    squared = beside * beside
    level = face["eye_level"] - face["brow_distance"] - picture["brow_raise"]
    line = (
        surface.v - level + face["brow_arch"] * (1.0 - squared) * 1.5 + face["brow_tilt"] * face["brow_width"] * beside
    )
    brow = _bell((line / face["brow_thickness"]) ** 2) * _soft(1.0 - squared, 0.6)
    layers.put(brow * face["brow_strength"], _hair_colour(face) * 0.7)


def _put_hair_in_front(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters) -> None:
    u = surface.u
    line = face["hairline"] + picture["hairline_change"] + u * (face["hair_parting"] + face["hairline_curve"] * u)
    line += face["hair_waves"] * np.sin(u * 9.0 + face["hair_wave_phase"])
    opacity = _soft(line - surface.v, 2.5 * surface.pixel) * surface.scalp
    layers.put(opacity, _hair_colour(face))


def _put_glasses(layers: _Layers, surface: _Surface, face: Parameters, picture: Parameters, probability: float) -> None:
    worn = (picture["glasses_draw"] < probability).astype(np.float32)
    dark = worn * (picture["glasses_dark_draw"] < 0.25)
    beside = (np.abs(surface.u) - face["eye_spacing"] - 0.01) / picture["glasses_width"]
    down = (surface.v - face["eye_level"] - 0.02) / picture["glasses_height"]
    beside *= beside
    down_squared = down * down
    squared = beside * beside + down_squared * down_squared  # a rounded rectangle
    tone = np.repeat(picture["glasses_lightness"], 3, axis=1)
    layers.put(_soft(1.0 - squared, 0.8) * (0.08 * worn + 0.84 * dark), tone * 0.5)
    rim = _bell((squared - 1.0) ** 2 * 2.5)
    bridge = _bell(down_squared * 14.0) * (np.abs(surface.u) < face["eye_spacing"] - picture["glasses_width"] * 0.8)
    layers.put(np.maximum(rim, bridge) * surface.head * (0.85 * worn), tone)


def _put_occluder(layers: _Layers, surface: _Surface, picture: Parameters, probability: float) -> None:
    present = (picture["occluder_draw"] < probability).astype(np.float32)
    distance = picture["occluder_distance"]
    across = surface.across - np.cos(picture["occluder_angle"]) * distance
    down = surface.down - np.sin(picture["occluder_angle"]) * distance
    cosine, sine = np.cos(picture["occluder_turn"]), np.sin(picture["occluder_turn"])
    along = (across * cosine + down * sine) / picture["occluder_width"]
    thwart = (down * cosine - across * sine) / picture["occluder_height"]
    colour = _colour(picture["occluder_red"], picture["occluder_green"], picture["occluder_blue"])
    layers.put(_soft(1.0 - along * along - thwart * thwart, 0.12) * present, colour)


def _shading(
    surface: _Surface, face: Parameters, picture: Parameters, lighting: float
) -> tuple[FloatArray, FloatArray]:
    """Brightness of the light on head and hair, and the shine to add to the skin, each (n, P)."""
    ridge = surface.u / face["nose_ridge"]
    below_brows = surface.v - face["eye_level"] + 0.10
    on_nose = _soft(below_brows, 0.35) * _soft(face["nose_tip"] + 0.06 - surface.v, 0.10)
    relief = ridge * _bell(ridge * ridge) * on_nose * (face["nose_relief"] * 1.6)
    across, down = picture["light_across"] * lighting, picture["light_down"] * lighting
    length = 1.0 / np.sqrt(across**2 + down**2 + 0.55)
    lambert = (surface.normal_across + relief) * (across * length)
    lambert += surface.normal_down * (down * length)
    lambert += surface.normal_front * (math.sqrt(0.55) * length)
    np.maximum(lambert, 0.0, out=lambert)
    ambient = 1.0 - (1.0 - picture["ambient"]) * min(lighting, 1.3)
    shine = lambert * lambert
    shine *= shine
    shine *= shine
    shine *= picture["shine"]
    lambert *= 1.35 * (1.0 - ambient)
    lambert += ambient
    return lambert, shine


def _skin_basis(surface: _Surface) -> FloatArray:
    """(n, K, P), the products of `SKIN_WAVES`."""
    across, down = _waves(surface.u * np.float32(0.5 * math.pi)), _waves(surface.v * np.float32(0.5 * math.pi))
    n, pixels = surface.u.shape
    basis = np.empty((n, len(SKIN_WAVES), pixels), np.float32)
    for k, (vertical, horizontal) in enumerate(SKIN_WAVES):
        np.multiply(down[vertical], across[horizontal], out=basis[:, k])
    return basis


def _waves(angle: FloatArray) -> tuple[FloatArray, ...]:
    """1, cos a, sin a, cos 2a, sin 2a."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.ones_like(angle), cosine, sine, cosine * cosine - sine * sine, 2.0 * sine * cosine


def _background(picture: Parameters, amplitudes: FloatArray, image_size: int) -> FloatArray:
    """(n, 3, P): a flat colour and a smooth pattern."""
    place = (np.arange(image_size) + 0.5) / image_size * math.pi
    waves = np.cos(place[None, :] * np.arange(BACKGROUND_WAVES)[:, None])  # (waves, H)
    basis = (waves[:, None, :, None] * waves[None, :, None, :]).reshape(BACKGROUND_WAVES**2, -1).astype(np.float32)
    colour = _colour(picture["background_red"], picture["background_green"], picture["background_blue"])
    return np.matmul(amplitudes, basis) + colour[:, :, None]


def _camera_colours(image: FloatArray, picture: Parameters, lighting: float) -> FloatArray:
    """White balance, saturation, exposure, gamma and black level; (n, 3, P) in place."""
    warmth = picture["light_warmth"] * np.array([0.16, 0.0, -0.20], np.float32)
    tint = picture["light_tint"] * np.array([-0.04, 0.06, -0.04], np.float32)
    exposure = np.exp(picture["log_exposure"] * lighting)
    gain = (exposure * (1.0 + lighting * (warmth + tint)))[:, :, None]  # (n, 3, 1)
    grey = image.mean(axis=1, keepdims=True)
    saturation = (1.0 + (picture["saturation"] - 1.0) * lighting)[:, :, None]
    image -= grey
    image *= saturation
    image += grey
    image *= gain
    np.clip(image, 1e-4, 1.2, out=image)
    np.log(image, out=image)  # a power by logarithm: numpy's own is slow on processors without AVX-512
    image *= np.exp(picture["log_gamma"] * lighting)[:, :, None]
    np.exp(image, out=image)
    black = picture["black_level"][:, :, None] * np.float32(lighting)
    image *= 1.0 - black
    image += black
    return image


def _degrading_matrices(image_size: int, blur: FloatArray, cells: FloatArray) -> FloatArray:
    """(n, H, H): Gaussian blur, then averaging over `cells` equal parts, then linear interpolation back to H.

    Args:
        image_size: H.
        blur: (n, 1) standard deviation in pixels, positive.
        cells: (n, 1) parts per side in [1, H], need not be whole numbers.
    """
    centre = np.arange(image_size, dtype=np.float32)
    apart = centre[:, None] - centre[None, :]  # (H, H)
    gauss = np.exp(-0.5 * (apart / blur[:, :, None]) ** 2)
    gauss /= gauss.sum(axis=2, keepdims=True)
    side = (image_size / cells)[:, :, None]  # (n, 1, 1) pixels per cell
    start = centre[None, :, None] * side  # cell's first edge
    overlap = np.minimum(centre + 1.0, start + side) - np.maximum(centre, start)  # (n, cell, pixel)
    down = np.maximum(overlap, 0.0)
    down /= np.maximum(down.sum(axis=2, keepdims=True), 1e-6)
    last = np.ceil(cells)[:, :, None] - 1.0
    place = np.clip((centre[None, :, None] + 0.5) / side - 0.5, 0.0, last)  # (n, pixel, 1) in cells
    up = np.maximum(1.0 - np.abs(place - centre), 0.0)  # (n, pixel, cell)
    return np.matmul(up, np.matmul(down, gauss))
