"""Draws scenes of coloured shapes and printed words, with questions and answers about them.

    python3 scenes.py --seed 800001 --count 500 --task detect --out DIR

writes PNG pictures of 224 x 224 and `data.jsonl`, one question a line: `image`, `task`, `prompt`, `answers` (any of
them is right), `boxes` ([yMin, xMin, yMax, xMax, label] in [0, 1]) and, for `segment`, `masks` (one PNG of
224 x 224 a box, 255 inside the shape). With `--task all` every scene gets one question of each task that fits it.
The same seed gives the same files. Seeds from 800,000 upward are held out: training never draws them.
Only the standard library is needed.
"""

import argparse
import json
import math
import os
import random
import struct
import zlib

SIZE = 224
HELD_OUT = 800_000
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
TASKS = ["caption", "colour", "shape", "count", "yesno", "where", "detect", "segment", "ocr"]

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


def _unit_spans(shape, y):
    """The stretches of a row at height y of the unit square that lie inside the shape."""
    d = abs(y - 0.5)
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
    return _crossings(_STAR if shape == "star" else _HEART, y)


_SPANS = {}


def spans(shape, size):
    """Rows of [start, end) pixel stretches of a shape `size` pixels wide and high."""
    key = (shape, size)
    if key not in _SPANS:
        rows = []
        for r in range(size):
            row = []
            for a, b in _unit_spans(shape, (r + 0.5) / size):
                start, end = round(a * size), round(b * size)
                row.append((start, max(end, start + 1)))
            rows.append(row)
        _SPANS[key] = rows
    return _SPANS[key]


class Thing:
    """A shape: x, y of its box's upper left corner and its side, in even pixels."""

    __slots__ = ("shape", "colour", "x", "y", "size", "rgb")

    def __init__(self, shape, colour, x, y, size, rgb):
        self.shape, self.colour, self.x, self.y, self.size, self.rgb = shape, colour, x, y, size, rgb

    @property
    def box(self):
        """[yMin, xMin, yMax, xMax] in [0, 1]."""
        return [self.y / SIZE, self.x / SIZE, (self.y + self.size) / SIZE, (self.x + self.size) / SIZE]


class Word:
    """Printed text: upper left corner, width of a font dot in pixels."""

    __slots__ = ("text", "x", "y", "scale", "rgb")

    def __init__(self, text, x, y, scale, rgb):
        self.text, self.x, self.y, self.scale, self.rgb = text, x, y, scale, rgb

    @property
    def width(self):
        return (6 * len(self.text) - 1) * self.scale

    @property
    def height(self):
        return 7 * self.scale


class Scene:
    """Things in order of their upper edge (then left edge), words, and the colours of the background."""

    def __init__(self, rng, crowded=False):
        self.dark = rng.random() < 0.3
        base = rng.randint(16, 52) if self.dark else rng.randint(222, 250)
        self.ground = tuple(min(255, max(0, base + rng.randint(-6, 6))) for _ in range(3))
        self.slope = rng.choice([0, 0, 0, 1]) * rng.uniform(-14, 14)
        self.things, self.words = [], []
        taken = []
        for _ in range(rng.randint(1, 3) if crowded else int(rng.random() < 0.5)):
            self._print(rng, taken)
        count = rng.randint(4, 8) if crowded else rng.choice([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6])
        if not count and not self.words:
            count = 2
        for _ in range(count):
            self._place(rng, taken, crowded)
        self.things.sort(key=lambda t: (t.y, t.x))

    def _free(self, taken, x, y, w, h, gap=6):
        return all(x >= c + gap or a >= x + w + gap or y >= d + gap or b >= y + h + gap for a, b, c, d in taken)

    def _print(self, rng, taken):
        text = str(rng.randint(0, 10 ** rng.randint(1, 3) - 1)) if rng.random() < 0.3 else rng.choice(WORDS)
        scale = rng.choice([3, 4, 4])
        word = Word(text, 0, 0, scale, tuple(rng.randint(220, 255) if self.dark else rng.randint(0, 40) for _ in range(3)))
        for _ in range(20):
            x = 2 * rng.randint(2, (SIZE - 4 - word.width) // 2)
            y = 2 * rng.randint(2, (SIZE - 4 - word.height) // 2)
            if self._free(taken, x, y, word.width, word.height):
                word.x, word.y = x, y
                taken.append((x, y, x + word.width, y + word.height))
                self.words.append(word)
                return

    def _place(self, rng, taken, crowded):
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
            size = 2 * rng.randint(16, (30 if crowded else 44) if attempt < 10 else 24)
            x, y = 2 * rng.randint(0, (SIZE - size) // 2), 2 * rng.randint(0, (SIZE - size) // 2)
            # Upper edges stand apart, so that the order of an answer never hangs on two pixels.
            if self._free(taken, x, y, size, size) and all(abs(y - t.y) >= 8 for t in self.things):
                taken.append((x, y, x + size, y + size))
                self.things.append(Thing(shape, colour, x, y, size, rgb))
                return

    def draw(self):
        """RGB bytes, rows from the top: SIZE * SIZE * 3."""
        pixels = bytearray()
        for y in range(SIZE):
            d = round(self.slope * (y / SIZE - 0.5))
            pixels += bytes(min(255, max(0, c + d)) for c in self.ground) * SIZE
        stride = SIZE * 3
        for t in self.things:
            colour = bytes(t.rgb)
            at = t.y * stride + t.x * 3
            for row in spans(t.shape, t.size):
                for a, b in row:
                    pixels[at + a * 3:at + b * 3] = colour * (b - a)
                at += stride
        for w in self.words:
            dot = bytes(w.rgb) * w.scale
            for i, c in enumerate(w.text):
                for col, bits in enumerate(FONT[c]):
                    x = (w.x + (6 * i + col) * w.scale) * 3
                    for r in range(7):
                        if bits >> r & 1:
                            at = (w.y + r * w.scale) * stride + x
                            for k in range(w.scale):
                                pixels[at + k * stride:at + k * stride + len(dot)] = dot
        return pixels


class Question:
    """`steps` names, for each item of the answer in order, the things it speaks of (indices into scene.things)."""

    __slots__ = ("task", "prompt", "answers", "boxes", "about", "steps")

    def __init__(self, task, prompt, answers, boxes=(), about=(), steps=()):
        self.task, self.prompt, self.answers = task, prompt, answers
        self.boxes, self.about, self.steps = list(boxes), list(about), list(steps)


def name(t):
    return f"{t.colour} {t.shape}"


def article(text):
    return ("an " if text[0] in "aeiou" else "a ") + text


def matches(scene, phrase):
    """Indices of the things that `circle`, `red object` or `red circle` speaks of."""
    words = phrase.split()
    return [
        i for i, t in enumerate(scene.things)
        if (words[-1] == "object" or t.shape == words[-1]) and (len(words) == 1 or t.colour == words[0])
    ]


def loc(v):
    return f"<loc{math.floor(v * 1023 + 0.5):04d}>"


def _caption(scene, rng):
    parts = [article(name(t)) for t in scene.things]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
    if scene.words:
        kind = "number" if scene.words[0].text.isdigit() else "word"
        text = f"{text} with the {kind} {scene.words[0].text}" if text else f"the {kind} {scene.words[0].text}"
    return Question("caption", "caption en", [text], steps=[[i] for i in range(len(parts))])


def _colour(scene, rng):
    once = [t for t in scene.things if len(matches(scene, t.shape)) == 1]
    if not once:
        return None
    t = rng.choice(once)
    return Question("colour", f"answer en what colour is the {t.shape}?", [t.colour], about=matches(scene, t.shape))


def _shape(scene, rng):
    once = [t for t in scene.things if len(matches(scene, f"{t.colour} object")) == 1]
    if not once:
        return None
    t = rng.choice(once)
    about = matches(scene, f"{t.colour} object")
    return Question("shape", f"answer en what shape is the {t.colour} object?", [t.shape], about=about)


def _count(scene, rng):
    dice = rng.random()
    if not scene.things or dice < 0.12:
        phrase = f"{rng.choice(COLOUR_NAMES)} object" if dice < 0.06 else rng.choice(SHAPES)
    elif dice < 0.3:
        phrase = "object"
    elif dice < 0.65:
        phrase = f"{rng.choice(scene.things).colour} object"
    else:
        phrase = rng.choice(scene.things).shape
    about = matches(scene, phrase)
    plural = phrase + ("es" if phrase.endswith("s") else "s")
    return Question("count", f"answer en how many {plural} are there?", [str(len(about))], about=about)


def _yesno(scene, rng):
    if not scene.things:
        return None
    yes = rng.random() < 0.5
    for _ in range(50):
        full = rng.random() < 0.7
        if yes:
            t = rng.choice(scene.things)
            phrase = name(t) if full else t.shape
        elif full and rng.random() < 0.6:  # both are there, but not together
            phrase = f"{rng.choice(scene.things).colour} {rng.choice(scene.things).shape}"
        else:
            phrase = f"{rng.choice(COLOUR_NAMES)} {rng.choice(SHAPES)}" if full else rng.choice(SHAPES)
        about = matches(scene, phrase)
        if bool(about) == yes:
            break
    else:
        return None
    return Question("yesno", f"answer en is there {article(phrase)}?", ["yes" if yes else "no"], about=about)


def place(t):
    """The ninth of the picture that the middle of a thing lies in; None where it is close to a border."""
    cells = []
    for v in (t.y + t.size / 2, t.x + t.size / 2):
        third = v * 3 / SIZE
        if any(abs(v - SIZE * k / 3) < 5 for k in (1, 2)):
            return None
        cells.append(int(third))
    return PLACES[cells[0] * 3 + cells[1]]


def _where(scene, rng):
    ways = []
    for t in scene.things:
        if place(t):
            ways += [(t, p) for p in (t.shape, name(t)) if len(matches(scene, p)) == 1]
    if not ways:
        return None
    t, phrase = rng.choice(ways)
    answer = place(t)
    answers = [answer, "center"] if answer == "centre" else [answer]
    return Question("where", f"answer en where is the {phrase}?", answers, about=matches(scene, phrase))


def _phrases(scene, rng, count):
    chosen = []
    for _ in range(count):
        if scene.things and rng.random() < 0.88:
            t = rng.choice(scene.things)
            phrase = t.shape if rng.random() < 0.55 else name(t)
        else:
            phrase = rng.choice(SHAPES) if rng.random() < 0.5 else f"{rng.choice(COLOUR_NAMES)} {rng.choice(SHAPES)}"
        if not any(set(phrase.split()) >= set(c.split()) or set(c.split()) >= set(phrase.split()) for c in chosen):
            chosen.append(phrase)
    return chosen


def _detect(scene, rng, count=None, verb="detect"):
    phrases = _phrases(scene, rng, count or rng.choice([1, 1, 2]))
    items, boxes, steps = [], [], []
    for phrase in phrases:
        for i in matches(scene, phrase):
            box = scene.things[i].box
            items.append("".join(loc(v) for v in box) + " " + phrase)
            boxes.append(box + [phrase])
            steps.append([i])
    return Question(verb, f"{verb} " + " ; ".join(phrases), [" ; ".join(items)], boxes, steps=steps)


def _segment(scene, rng):
    if not scene.things:
        return None
    question = None
    while not question or not question.boxes:
        question = _detect(scene, rng, 1, "segment")
    return question


def _ocr(scene, rng):
    if not scene.words:
        return None
    return Question("ocr", "ocr", [scene.words[0].text])


ASK = {
    "caption": _caption, "colour": _colour, "shape": _shape, "count": _count, "yesno": _yesno, "where": _where,
    "detect": _detect, "segment": _segment, "ocr": _ocr,
}


def scenes(seed, count, task):
    """Yields (scene, questions): `count` scenes, each of which the task (or `all`) fits."""
    made = attempt = 0
    while made < count:
        rng = random.Random(f"{seed}/{task}/{attempt}")
        attempt += 1
        scene = Scene(rng)
        questions = [q for q in (ASK[t](scene, rng) for t in (TASKS if task == "all" else [task])) if q]
        if questions:
            made += 1
            yield scene, questions


def png(pixels, width, height, channels=3):
    """A PNG file of 8-bit RGB or grey rows."""
    stride = width * channels
    raw = b"".join(b"\0" + bytes(pixels[y * stride:(y + 1) * stride]) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def mask(t):
    """Grey picture of SIZE x SIZE, 255 inside the shape."""
    grey = bytearray(SIZE * SIZE)
    for r, row in enumerate(spans(t.shape, t.size)):
        for a, b in row:
            at = (t.y + r) * SIZE + t.x
            grey[at + a:at + b] = b"\xff" * (b - a)
    return grey


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--task", choices=TASKS + ["all"], default="all")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "data.jsonl"), "w") as out:
        for n, (scene, questions) in enumerate(scenes(args.seed, args.count, args.task)):
            image = f"{args.task}_{n:05d}.png"
            with open(os.path.join(args.out, image), "wb") as f:
                f.write(png(scene.draw(), SIZE, SIZE))
            for q in questions:
                row = {"image": image, "task": q.task, "prompt": q.prompt, "answers": q.answers, "boxes": q.boxes}
                if q.task == "segment":
                    row["masks"] = []
                    for k, (i,) in enumerate(q.steps):
                        row["masks"].append(f"{args.task}_{n:05d}_mask{k}.png")
                        with open(os.path.join(args.out, row["masks"][-1]), "wb") as f:
                            f.write(png(mask(scene.things[i]), SIZE, SIZE, 1))
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
