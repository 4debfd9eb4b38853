"""Pictures of coloured shapes and printed words, drawn from a seed with nothing but the standard library.

A picture is 224 x 224 RGB. The same generator state gives the same picture; `Style` says what kinds of picture there are.
"""

import math
import struct
import zlib
from dataclasses import dataclass

SIZE = 224
SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart"]
COLOURS = {
    "red": (214, 36, 40), "green": (44, 158, 62), "blue": (44, 82, 214), "yellow": (244, 216, 40),
    "orange": (246, 132, 26), "purple": (132, 52, 168), "pink": (248, 150, 196), "cyan": (70, 206, 220),
}
COLOUR_NAMES = list(COLOURS)
PLACES = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]
WORDS = (
    "STOP GO OPEN EXIT TAXI BUS CAFE BANK HOTEL SALE FREE NEW HOT COLD MILK TEA BREAD FISH WATER SUGAR SALT ICE BOOK "
    "NEWS MAIL POST SHOP PARK CITY ROAD WEST EAST NORTH SOUTH HELLO LOVE HOME DOG CAT BIRD HORSE SUN MOON RAIN SNOW "
    "FIRE TREE ROSE APPLE LEMON PIZZA RADIO MUSIC JAZZ KING QUEEN YES NO UP DOWN LEFT RIGHT"
).split()
COUNTS = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6]
FONTS = ["plain", "bold", "slanted"]
ANGLES = [-20, -10, 10, 20]

# Five columns a character, lowest bit on top, seven rows.
FONT = {
    c: bytes.fromhex(h) for c, h in zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        ("3E5149453E 00427F4000 4261514946 2141454B31 1814127F10 2745454539 3C4A494930 0171090503 3649494936 "
         "064949291E 7E1111117E 7F49494936 3E41414122 7F4141221C 7F49494941 7F09090901 3E4149497A 7F0808087F "
         "00417F4100 2040413F01 7F08142241 7F40404040 7F020C027F 7F0408107F 3E4141413E 7F09090906 3E4151215E "
         "7F09192946 4649494931 01017F0101 3F4040403F 1F2040201F 3F4038403F 6314081463 0708700807 6151494543").split())
}


def _polygon(points):
    """Scales points to the unit square, so that a shape touches all four sides of its box."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x0, y0, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return [((x - x0) / w, (y - y0) / h) for x, y in points]


_STAR = _polygon([
    ((1.0 if i % 2 == 0 else 0.42) * math.sin(i * math.pi / 5), -(1.0 if i % 2 == 0 else 0.42) * math.cos(i * math.pi / 5))
    for i in range(10)
])
_HEART = _polygon([
    (16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
    for t in (i * math.pi / 40 for i in range(80))
])


def _crossings(points, y):
    xs = []
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1]):
        if (ya <= y) != (yb <= y):
            xs.append(xa + (y - ya) * (xb - xa) / (yb - ya))
    xs.sort()
    return list(zip(xs[::2], xs[1::2]))


# The straight-sided shapes as outlines, for turning them; circle and ring look the same from everywhere.
_OUTLINES = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)], "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)], "star": _STAR, "heart": _HEART,
    "cross": [(x / 3, y / 3) for x, y in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2),
                                          (0, 1), (1, 1))],
}


def _unit_spans(shape, y, angle):
    """The stretches of a row at height y of the unit square that lie inside the shape, turned by `angle` degrees."""
    d = abs(y - 0.5)
    if angle and shape in _OUTLINES:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turned = [((px - 0.5) * c - (py - 0.5) * s, (px - 0.5) * s + (py - 0.5) * c) for px, py in _OUTLINES[shape]]
        return _crossings(_polygon(turned), y)
    if shape == "circle":
        h = math.sqrt(0.25 - d * d)
        return [(0.5 - h, 0.5 + h)]
    if shape == "square":
        return [(0.0, 1.0)]
    if shape == "triangle":
        return [(0.5 - y / 2, 0.5 + y / 2)]
    if shape == "diamond":
        return [(d, 1 - d)]
    if shape == "cross":
        return [(0.0, 1.0)] if d < 1 / 6 else [(1 / 3, 2 / 3)]
    if shape == "ring":
        h = math.sqrt(0.25 - d * d)
        if d >= 0.28:
            return [(0.5 - h, 0.5 + h)]
        g = math.sqrt(0.0784 - d * d)
        return [(0.5 - h, 0.5 - g), (0.5 + g, 0.5 + h)]
    return _crossings(_OUTLINES[shape], y)


_SPANS = {}


def spans(shape, size, angle=0):
    """Rows of [start, end) pixel stretches of a shape `size` pixels wide and high."""
    key = (shape, size, angle)
    if key not in _SPANS:
        rows = []
        for r in range(size):
            row = []
            for a, b in _unit_spans(shape, (r + 0.5) / size, angle):
                start, end = round(a * size), round(b * size)
                row.append((start, max(end, start + 1)))
            rows.append(row)
        _SPANS[key] = rows
    return _SPANS[key]


class Canvas:
    """RGB bytes, rows from the top: SIZE * SIZE * 3."""

    def __init__(self):
        self.pixels = bytearray(SIZE * SIZE * 3)

    def row(self, y, x, rgb, width):
        at = (y * SIZE + x) * 3
        self.pixels[at:at + width * 3] = bytes(rgb) * width

    def fill(self, x, y, width, height, rgb):
        """A rectangle; what lies outside the picture is left out."""
        left, right = max(0, x), min(SIZE, x + width)
        for r in range(max(0, y), min(SIZE, y + height)):
            self.row(r, left, rgb, max(0, right - left))

    def frame(self, x, y, side, thick, rgb):
        """The border of a square, inside it."""
        for a, b, w, h in ((x, y, side, thick), (x, y + side - thick, side, thick), (x, y, thick, side),
                           (x + side - thick, y, thick, side)):
            self.fill(a, b, w, h, rgb)

    def shape(self, t):
        for r, stretches in enumerate(spans(t.shape, t.size, t.angle)):
            for a, b in stretches:
                self.row(t.y + r, t.x + a, t.rgb, b - a)

    def word(self, w):
        thick = w.scale + (1 if w.font == "bold" else 0)
        for i, c in enumerate(w.text):
            for col, bits in enumerate(FONT[c]):
                x = w.x + (6 * i + col) * w.scale
                for r in range(7):
                    if bits >> r & 1:
                        lean = (6 - r) * w.scale // 3 if w.font == "slanted" else 0
                        self.fill(x + lean, w.y + r * w.scale, thick, w.scale, w.rgb)


class Thing:
    """A shape: x, y of its box's upper left corner and its side, in even pixels; `angle` in degrees."""

    __slots__ = ("shape", "colour", "x", "y", "size", "rgb", "angle")

    def __init__(self, shape, colour, x, y, size, rgb, angle=0):
        self.shape, self.colour, self.x, self.y, self.size, self.rgb = shape, colour, x, y, size, rgb
        self.angle = angle

    @property
    def width(self):
        return self.size

    height = width

    @property
    def box(self):
        """[yMin, xMin, yMax, xMax] in [0, 1]."""
        return [self.y / SIZE, self.x / SIZE, (self.y + self.size) / SIZE, (self.x + self.size) / SIZE]


class Word:
    """Printed text: upper left corner, width of a font dot in pixels, one of FONTS."""

    __slots__ = ("text", "x", "y", "scale", "rgb", "font")

    def __init__(self, text, x, y, scale, rgb, font="plain"):
        self.text, self.x, self.y, self.scale, self.rgb, self.font = text, x, y, scale, rgb, font

    @property
    def width(self):
        return (6 * len(self.text) - 1) * self.scale + {"plain": 0, "bold": 1, "slanted": 2 * self.scale}[self.font]

    @property
    def height(self):
        return 7 * self.scale


@dataclass(frozen=True)
class Style:
    """A kind of scene."""

    things: tuple = ()  # how many, at least and at most; one of COUNTS where empty
    words: tuple = ()  # likewise; one or none where empty
    printed: float = 0.5  # chance of that one
    numbers: float = 0.3  # share of numbers among the words
    largest: int = 44  # half the side of the largest thing
    varied: float = 0.0  # chance of each of: patterned ground, speckles, another font, turned things, a post before one
    marked: bool = False  # a red box is drawn around one thing


USUAL = Style()
CROWDED = Style(things=(4, 8), words=(1, 3), largest=30)
PRINTED = Style(things=(0, 2), words=(3, 7), numbers=0.75)
VARIED = Style(varied=0.4)
MARKED = Style(things=(2, 6), marked=True)
STYLES = {"usual": USUAL, "crowded": CROWDED, "printed": PRINTED, "varied": VARIED, "marked": MARKED}


class Scene:
    """Things in order of their upper edge (then left edge), words, and the colours of the background; `mark` is the
    index of the thing that a red box is drawn around, `post` the grey (x, y, width, height, rgb) that hides a part."""

    def __init__(self, rng, style=USUAL):
        self.dark = rng.random() < 0.3
        base = rng.randint(16, 52) if self.dark else rng.randint(222, 250)
        self.ground = tuple(min(255, max(0, base + rng.randint(-6, 6))) for _ in range(3))
        self.slope = rng.choice([0, 0, 0, 1]) * rng.uniform(-14, 14)
        self.things, self.words, self.mark, self.post = [], [], None, None
        self.stripe, self.specks = (0, 0, 0), []
        taken = []
        for _ in range(rng.randint(*style.words) if style.words else int(rng.random() < style.printed)):
            self._print(rng, taken, style)
        count = rng.randint(*style.things) if style.things else rng.choice(COUNTS)
        if not count and not self.words:
            count = 2
        for _ in range(count):
            self._place(rng, taken, style)
        self.things.sort(key=lambda t: (t.y, t.x))
        if style.varied:
            self._vary(rng, style.varied)
        inside = [i for i, t in enumerate(self.things) if 6 <= min(t.x, t.y) and max(t.x, t.y) + t.size <= SIZE - 6]
        if style.marked and inside:
            self.mark = rng.choice(inside)

    def _free(self, taken, x, y, w, h, gap=6):
        return all(x >= c + gap or a >= x + w + gap or y >= d + gap or b >= y + h + gap for a, b, c, d in taken)

    def _print(self, rng, taken, style):
        number = rng.random() < style.numbers
        text = str(rng.randint(0, 10 ** rng.randint(1, 3) - 1)) if number else rng.choice(WORDS)
        scale = rng.choice([3, 4, 4])
        rgb = tuple(rng.randint(220, 255) if self.dark else rng.randint(0, 40) for _ in range(3))
        word = Word(text, 0, 0, scale, rgb)
        if style.varied and rng.random() < style.varied:
            word.font = rng.choice(FONTS[1:])
        for _ in range(20):
            x = 2 * rng.randint(2, (SIZE - 4 - word.width) // 2)
            y = 2 * rng.randint(2, (SIZE - 4 - word.height) // 2)
            if self._free(taken, x, y, word.width, word.height):
                word.x, word.y = x, y
                taken.append((x, y, x + word.width, y + word.height))
                self.words.append(word)
                return

    def _place(self, rng, taken, style):
        shape, colour = rng.choice(SHAPES), rng.choice(COLOUR_NAMES)
        if self.things:
            other, dice = rng.choice(self.things), rng.random()
            if dice < 0.2:
                shape = other.shape
            elif dice < 0.35:
                colour = other.colour
            elif dice < 0.4:
                shape, colour = other.shape, other.colour
        rgb = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLOURS[colour])
        for attempt in range(30):
            size = 2 * rng.randint(16, style.largest if attempt < 10 else 24)
            x, y = 2 * rng.randint(0, (SIZE - size) // 2), 2 * rng.randint(0, (SIZE - size) // 2)
            # Upper edges stand apart, so that the order of an answer never hangs on two pixels.
            if self._free(taken, x, y, size, size) and all(abs(y - t.y) >= 8 for t in self.things):
                taken.append((x, y, x + size, y + size))
                self.things.append(Thing(shape, colour, x, y, size, rgb))
                return

    def _vary(self, rng, chance):
        if rng.random() < chance:
            self.stripe = rng.choice([8, 12, 16, 24]), rng.randint(4, 9), rng.randint(0, 2)
        if rng.random() < chance:
            self.specks = [(rng.randrange(SIZE * SIZE), rng.randint(0, 255)) for _ in range(rng.randint(200, 1500))]
        if rng.random() < chance:
            for t in self.things:
                t.angle = rng.choice(ANGLES)
        if self.things and rng.random() < chance:
            # Through the middle, so that the box stays what is seen.
            t, width = rng.choice(self.things), rng.choice([6, 8, 10])
            x = t.x + rng.randint(t.size // 3, 2 * t.size // 3 - width // 2)
            self.post = x, t.y - 4, width, t.size + 8, (rng.randint(120, 150),) * 3

    def draw(self):
        """RGB bytes, rows from the top: SIZE * SIZE * 3."""
        canvas = Canvas()
        period, depth, way = self.stripe
        for y in range(SIZE):
            d = round(self.slope * (y / SIZE - 0.5))
            canvas.row(y, 0, (min(255, max(0, c + d)) for c in self.ground), SIZE)
            for x in range(0, SIZE, period or SIZE) if depth else ():
                # 0 rows, 1 columns, 2 a chequered ground
                if ((y // period if way != 1 else 0) + (x // period if way != 0 else 0)) % 2:
                    other = d + depth if self.dark else d - depth
                    shade = (min(255, max(0, c + other)) for c in self.ground)
                    canvas.row(y, x, shade, min(period, SIZE - x))
        for t in self.things:
            canvas.shape(t)
        if self.post:
            canvas.fill(*self.post)
        for w in self.words:
            canvas.word(w)
        if self.mark is not None:
            t = self.things[self.mark]
            canvas.frame(t.x - 6, t.y - 6, t.size + 12, 4, (255, 0, 0))
        for at, grey in self.specks:
            canvas.pixels[at * 3:at * 3 + 3] = bytes((grey,)) * 3
        return canvas.pixels


def mask(t):
    """Grey picture of SIZE x SIZE, 255 inside the shape."""
    grey = bytearray(SIZE * SIZE)
    for r, row in enumerate(spans(t.shape, t.size, t.angle)):
        for a, b in row:
            at = (t.y + r) * SIZE + t.x
            grey[at + a:at + b] = b"\xff" * (b - a)
    return grey


def png(pixels, width, height, channels=3):
    """A PNG file of 8-bit RGB or grey rows."""
    stride = width * channels
    raw = b"".join(b"\0" + bytes(pixels[y * stride:(y + 1) * stride]) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
