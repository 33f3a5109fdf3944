"""Drawn street scenes of people, bicycles and cars, with the pixels that belong to each.

Whoever changes a drawing raises VERSION in scene_sets.py, which makes data sets of them.
"""

import cv2
import numpy as np

# Everything is drawn this many times larger and averaged down, which smooths the edges.
SCALE = 4
# Nothing is drawn that would leave less than this part of an object to be seen.
MIN_VISIBLE = 0.7
MIN_SIDE = 6  # pixels


def draw_scene(rng, height, width):
    """Draw a street with one to four objects, nearer ones larger and in front.

    Args:
        rng (numpy.random.Generator): decides everything.
        height, width (int): of the image, in pixels.

    Returns:
        tuple: the image (ndarray, uint8, (H, W, 3), RGB), the class of each object (list[int]; 0 person,
        1 bicycle, 2 car), and its visible part (list of ndarrays, bool, (H, W)), which has no holes, since
        what stands in front is larger.
    """
    horizon = rng.uniform(0.3, 0.5) * height
    canvas = _background(rng, height, width, horizon)
    owner = np.full((height, width), -1)
    classes, sizes = [], []
    depths = np.sort(rng.uniform(0.0, 1.0, rng.integers(1, 5)))
    for depth in depths:
        kind = int(rng.integers(3))
        ground = horizon + (0.12 + 0.83 * depth) * (height - horizon)
        size = (0.35 + 0.4 * depth) * height * rng.uniform(0.85, 1.15)
        trial = _Brush(canvas.copy())
        _DRAW[kind](trial, rng, rng.uniform(0.15, 0.85) * width, ground, size)
        mask = trial.silhouette()
        trial_owner = np.where(mask, len(classes), owner)
        if all(_is_visible(trial_owner == index, full) for index, full in enumerate([*sizes, mask.sum()])):
            canvas, owner = trial.canvas, trial_owner
            classes.append(kind)
            sizes.append(mask.sum())
    if not classes:
        return draw_scene(rng, height, width)

    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float64)
    image = image * rng.uniform(0.85, 1.2) + rng.normal(0.0, rng.uniform(2.0, 5.0), image.shape)
    masks = [owner == index for index in range(len(classes))]
    return np.clip(image, 0, 255).astype(np.uint8), classes, masks


def _is_visible(mask, full_size):
    width, height = cv2.boundingRect(mask.astype(np.uint8))[2:]
    return mask.sum() >= MIN_VISIBLE * full_size and min(width, height) >= MIN_SIDE


class _Brush:
    """Paints on a canvas and remembers which pixels it has covered. Coordinates are in image pixels."""

    def __init__(self, canvas):
        self.canvas = canvas
        self.painted = np.zeros(canvas.shape[:2], np.uint8)

    def polygon(self, points, colour):
        cv2.fillPoly(self.canvas, [_enlarged(points)], colour)
        self.cover(points)

    def cover(self, points):
        """Count what these points enclose as painted: needed where the image cuts the outline open."""
        cv2.fillPoly(self.painted, [_enlarged(points)], 255)

    def disc(self, centre, radius, colour):
        centre, radius = _enlarged(centre).tolist(), round(radius * SCALE)
        cv2.circle(self.canvas, centre, radius, colour, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(self.painted, centre, radius, 255, cv2.FILLED)

    def line(self, points, thickness, colour):
        points, thickness = _enlarged(points), max(1, round(thickness * SCALE))
        cv2.polylines(self.canvas, [points], False, colour, thickness, cv2.LINE_AA)
        cv2.polylines(self.painted, [points], False, 255, thickness)

    def silhouette(self):
        """What was painted and everything enclosed by it (wheels, frames): bool, (H, W)."""
        height, width = (side // SCALE for side in self.painted.shape)
        mask = cv2.resize(_filled(self.painted), (width, height), interpolation=cv2.INTER_AREA)
        # Averaging can close a notch of the outline, which would be a hole again.
        return _filled(np.where(mask >= 128, 255, 0).astype(np.uint8)) > 0


def _enlarged(points):
    """Pixels of the canvas."""
    return np.rint(np.asarray(points) * SCALE).astype(np.int32)


def _filled(mask):
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 255, cv2.FILLED)


def _colour(rng, low=30, high=235):
    return tuple(int(value) for value in rng.integers(low, high, 3))


def _shade(colour, factor):
    return tuple(int(min(255, value * factor)) for value in colour)


def _surface(rng, height, width, colour, noise):
    """A colour that brightens downwards, with smooth noise: uint8, (height * SCALE, width * SCALE, 3).

    ``noise`` maps the size of its grains in pixels to its strength.
    """
    surface = np.array(colour) * np.linspace(0.8, 1.2, height)[:, None, None] * np.ones((height, width, 1))
    for cell, strength in noise.items():
        grid = rng.normal(0.0, strength, (height // cell + 2, width // cell + 2))
        surface += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    return cv2.resize(np.clip(surface, 0, 255).astype(np.uint8), (width * SCALE, height * SCALE))


def _background(rng, height, width, horizon):
    """Sky, houses, trees and a street: uint8, (height * SCALE, width * SCALE, 3)."""
    sky = rng.integers((90, 140, 180), (190, 215, 250))
    canvas = _surface(rng, height, width, sky, {16: 6})
    brush = _Brush(canvas)

    left = -rng.uniform(0, 20)
    while left < width:
        right, top = left + rng.uniform(14, 40), horizon * rng.uniform(0.15, 0.95)
        if rng.random() < 0.65:
            _house(brush, rng, left, right, top, horizon)
        else:
            _tree(brush, rng, (left + right) / 2, top, horizon)
        left = right + rng.uniform(-2, 12)

    ground = rng.integers(75, 150) + rng.integers(-13, 13, 3)
    first = round(horizon * SCALE)
    canvas[first:] = _surface(rng, height, width, ground, {12: 9, 2: 6})[first:]
    kerb = horizon + 0.1 * (height - horizon)
    brush.line([(0, kerb), (width, kerb)], 1.0, _shade(ground, 1.4))
    stripe, shift = horizon + rng.uniform(0.45, 0.8) * (height - horizon), rng.uniform(0, 30)
    for start in np.arange(-shift, width, 30):
        brush.line([(start, stripe), (start + 14, stripe)], 1.5, _shade(ground, 1.7))
    return canvas


def _house(brush, rng, left, right, top, base):
    wall = _colour(rng, 80, 210)
    brush.polygon([(left, top), (right, top), (right, base), (left, base)], wall)
    if rng.random() < 0.5:
        middle = (left + right) / 2
        brush.polygon([(left - 1, top), (middle, top - 7), (right + 1, top)], _shade(wall, 0.6))
    pane = _shade(wall, rng.choice([0.5, 1.35]))
    for x in np.arange(left + 3, right - 5, 7):
        for y in np.arange(top + 3, base - 6, 8):
            brush.polygon([(x, y), (x + 3.5, y), (x + 3.5, y + 4.5), (x, y + 4.5)], pane)


def _tree(brush, rng, x, top, base):
    green = (int(rng.integers(30, 110)), int(rng.integers(90, 170)), int(rng.integers(20, 90)))
    brush.line([(x, base), (x, (top + base) / 2)], 2.0, (95, 70, 50))
    for _ in range(7):
        centre = (x + rng.normal(0, 4), top + rng.uniform(0.1, 0.6) * (base - top))
        brush.disc(centre, rng.uniform(3, 6), _shade(green, rng.uniform(0.75, 1.2)))


def _frame(x, ground, size, side=1):
    """Function that gives the pixels of points in units of ``size``, upwards from the ground: (N, 2)."""

    def at(*points):
        return np.array([(x + side * dx * size, ground - dy * size) for dx, dy in points])

    return at


def _person(brush, rng, x, ground, size):
    """A walker ``size`` pixels tall."""
    skin = _shade((236, 190, 160), rng.uniform(0.4, 1.0))
    shirt, trousers, hair = _colour(rng), _colour(rng, 20, 150), _colour(rng, 15, 110)
    stride, swing, girth = rng.uniform(0.02, 0.14), rng.uniform(0.03, 0.2), rng.uniform(0.85, 1.25)
    at = _frame(x, ground, size)
    for side in (-1, 1):
        leg = at((0.03 * side, 0.5), (0.6 * stride * side, 0.26), (stride * side, 0.03))
        brush.line(leg, 0.085 * size * girth, _shade(trousers, 1.0 + 0.12 * side))
        brush.line(at((stride * side, 0.02), (stride * side + 0.05, 0.02)), 0.05 * size, _shade(hair, 0.8))
    back, front = (at((0.05 * s, 0.78), (0.11 * s, 0.62), (swing * s, 0.47)) for s in (-1, 1))
    brush.line(back, 0.065 * size * girth, _shade(shirt, 0.75))
    chest, waist = 0.105 * girth, 0.08 * girth
    brush.polygon(at((-chest, 0.8), (chest, 0.8), (waist, 0.47), (-waist, 0.47)), shirt)
    brush.line(at((-0.06 * girth, 0.81), (0.06 * girth, 0.81)), 0.05 * size, shirt)
    brush.line(front, 0.065 * size * girth, _shade(shirt, 1.2))
    for hand in (back[-1], front[-1]):
        brush.disc(hand, 0.032 * size, skin)
    brush.line(at((0, 0.8), (0, 0.88)), 0.06 * size, _shade(skin, 0.85))
    hair_centre, face_centre = at((0, 0.925), (0.018, 0.905))
    brush.disc(hair_centre, 0.072 * size, hair)
    brush.disc(face_centre, 0.056 * size, skin)


def _bicycle(brush, rng, x, ground, size):
    """A bicycle ``size`` pixels long, seen from the side."""
    frame, tyre = _colour(rng), _colour(rng, 15, 60)
    side, width = rng.choice([-1, 1]), max(1.0, 0.035 * size)
    at = _frame(x, ground, size, side)
    radius = 0.215 * size
    hubs = at((-0.285, 0.215), (0.285, 0.215))
    angles = np.linspace(0, 2 * np.pi, 40)
    rim = (radius - width / 2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for hub in hubs:
        brush.cover(rim + hub)
        for angle in np.arange(0, np.pi, np.pi / 4) + rng.uniform(0, 1):
            spoke = radius * np.array([np.cos(angle), np.sin(angle)])
            brush.line([hub - spoke, hub + spoke], 0.01 * size, (170, 170, 175))
        brush.line(rim + hub, width, tyre)
    crank, seat, head = at((-0.03, 0.23), (-0.12, 0.52), (0.2, 0.54))
    diamond = [hubs[0], crank, head, seat, hubs[0]]
    brush.cover(diamond)
    brush.line(diamond, width, frame)
    brush.line([crank, seat, *at((-0.135, 0.58))], width, frame)
    brush.line([hubs[1], head, *at((0.185, 0.62))], width, frame)
    brush.line(at((0.12, 0.63), (0.2, 0.63), (0.25, 0.58)), width, tyre)
    brush.line(at((-0.2, 0.595), (-0.07, 0.585)), 1.7 * width, tyre)
    brush.disc(crank, 0.045 * size, _shade(tyre, 1.6))
    brush.line(at((-0.09, 0.15), (0.03, 0.31)), 0.8 * width, tyre)


def _car(brush, rng, x, ground, size):
    """A car of 1.5 times ``size`` pixels, seen from the side."""
    length, side = 1.5 * size, rng.choice([-1, 1])
    at = _frame(x, ground, length, side)
    paint = _colour(rng)
    roof, back, front = rng.uniform(0.34, 0.44), rng.uniform(-0.46, -0.25), rng.uniform(0.08, 0.2)
    belt, glass = 0.235, _shade((120, 150, 170), rng.uniform(0.4, 1.1))
    hood = rng.uniform(0.19, 0.235)
    rear, bonnet = [(-0.5, 0.09), (-0.49, 0.2), (-0.46, belt)], [(0.46, hood), (0.5, 0.15), (0.5, 0.08)]
    brush.polygon(at(*rear, (0.22, belt), *bonnet), paint)
    foot = belt - 0.01
    cabin = at((back - 0.02, foot), (back + 0.07, roof), (front - 0.08, roof), (front + 0.07, foot))
    brush.polygon(cabin, _shade(paint, 0.9))
    middle, sill, top = (back + front) / 2, belt + 0.01, roof - 0.025
    for near, far, lean in ((back + 0.02, middle - 0.012, 0.055), (front + 0.03, middle + 0.012, -0.075)):
        brush.polygon(at((near, sill), (near + lean, top), (far, top), (far, sill)), glass)
    brush.line(at((-0.47, 0.12), (0.48, 0.12)), 0.012 * length, _shade(paint, 0.6))
    brush.line(at((middle, belt), (middle, 0.11)), 0.008 * length, _shade(paint, 0.6))
    brush.line(at((middle - 0.09, 0.2), (middle - 0.05, 0.2)), 0.012 * length, _shade(paint, 0.5))
    for lamp, radius, colour in (
        ((0.475, 0.165), 0.022, (250, 240, 190)),
        ((-0.485, 0.185), 0.016, (190, 30, 30)),
    ):
        brush.disc(at(lamp)[0], radius * length, colour)
    for hub in at((-0.29, 0.085), (0.29, 0.085)):
        for radius, colour in ((0.088, (25, 25, 28)), (0.05, (165, 168, 172)), (0.015, (70, 70, 74))):
            brush.disc(hub, radius * length, colour)


_DRAW = (_person, _bicycle, _car)
