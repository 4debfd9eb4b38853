"""Questions about scenes, with their answers."""

import math

from drawing import COLOUR_NAMES, PLACES, SHAPES, SIZE

TASKS = ["caption", "colour", "shape", "count", "yesno", "where", "detect", "segment", "ocr", "caption_de", "caption_fr",
         "size", "compare"]
# Colours in the order of COLOUR_NAMES, by the gender of the shape they stand beside; shapes in that of SHAPES.
GERMAN = {
    "m": "ein roter grüner blauer gelber orangefarbener violetter rosafarbener türkisfarbener".split(),
    "n": "ein rotes grünes blaues gelbes orangefarbenes violettes rosafarbenes türkisfarbenes".split(),
    "f": "eine rote grüne blaue gelbe orangefarbene violette rosafarbene türkisfarbene".split(),
    "shapes": "m Kreis n Quadrat n Dreieck f Raute m Stern n Kreuz m Ring n Herz".split(),
    "words": ("und", "mit dem", "das Wort", "mit der", "die Zahl"),
}
FRENCH = {
    "m": "un rouge vert bleu jaune orange violet rose cyan".split(),
    "f": "une rouge verte bleue jaune orange violette rose cyan".split(),
    "shapes": "m cercle m carré m triangle m losange f étoile f croix m anneau m cœur".split(),
    "words": ("et", "avec le", "le mot", "avec le", "le nombre"),
}


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


def listed(parts, last):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" {last} " + parts[-1] if parts else ""


def _caption(scene, rng):
    parts = [article(name(t)) for t in scene.things]
    text = listed(parts, "and")
    if scene.words:
        kind = "number" if scene.words[0].text.isdigit() else "word"
        text = f"{text} with the {kind} {scene.words[0].text}" if text else f"the {kind} {scene.words[0].text}"
    return Question("caption", "caption en", [text], steps=[[i] for i in range(len(parts))])


def _told(thing, language):
    """`ein roter Kreis`, `une croix rouge`."""
    at = 2 * SHAPES.index(thing.shape)
    gender, noun = language["shapes"][at:at + 2]
    article, *colours = language[gender]
    colour = colours[COLOUR_NAMES.index(thing.colour)]
    return f"{article} {colour} {noun}" if language is GERMAN else f"{article} {noun} {colour}"


def _caption_in(code, language):
    def ask(scene, rng):
        parts = [_told(t, language) for t in scene.things]
        last, *word = language["words"]
        text = listed(parts, last)
        if scene.words:
            joint, alone = word[2:] if scene.words[0].text.isdigit() else word[:2]
            kind = f"{joint} {alone.split()[1]}" if text else alone
            text = f"{text} {kind} {scene.words[0].text}".strip()
        return Question(f"caption_{code}", f"caption {code}", [text], steps=[[i] for i in range(len(parts))])
    return ask


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


def located(scene, rng, count, verb):
    """A question for places: `detect`, or `segment` without the codes of its masks."""
    phrases = _phrases(scene, rng, count)
    items, boxes, steps = [], [], []
    for phrase in phrases:
        for i in matches(scene, phrase):
            box = scene.things[i].box
            items.append("".join(loc(v) for v in box) + " " + phrase)
            boxes.append(box + [phrase])
            steps.append([i])
    return Question(verb, f"{verb} " + " ; ".join(phrases), [" ; ".join(items)], boxes, steps=steps)


def _detect(scene, rng):
    return located(scene, rng, rng.choice([1, 1, 2]), "detect")


def _segment(scene, rng):
    if not scene.things:
        return None
    question = None
    while not question or not question.boxes:
        question = located(scene, rng, 1, "segment")
    return question


def _ocr(scene, rng):
    if not scene.words:
        return None
    return Question("ocr", "ocr", [scene.words[0].text])


def _once(scene, things):
    """(thing, phrase) of those that a shape alone, or a colour and a shape, tells from all others."""
    return [(t, p) for t in things for p in (t.shape, name(t)) if len(matches(scene, p)) == 1]


def _size(scene, rng):
    # Sides that are near to the next size are not asked about.
    sizes = {s: "small" if s <= 44 else "large" if s >= 70 else "medium" for s in (*range(45), *range(52, 63), *range(70, 90))}
    ways = _once(scene, [t for t in scene.things if t.size in sizes])
    if not ways:
        return None
    t, phrase = rng.choice(ways)
    return Question("size", f"answer en how large is the {phrase}?", [sizes[t.size]], about=matches(scene, phrase))


# What is compared, and how far apart two things are in it, in pixels; where they are close, it is not asked.
RELATIONS = {
    "larger than": lambda a, b: a.size - b.size, "smaller than": lambda a, b: b.size - a.size,
    "left of": lambda a, b: b.x + b.size / 2 - a.x - a.size / 2, "above": lambda a, b: b.y + b.size / 2 - a.y - a.size / 2,
}


def _compare(scene, rng):
    ways = _once(scene, scene.things)
    for _ in range(20 if len(scene.things) > 1 and len(ways) > 1 else 0):
        (a, first), (b, second) = rng.sample(ways, 2)
        relation = rng.choice(list(RELATIONS))
        apart = RELATIONS[relation](a, b)
        if a is not b and abs(apart) >= (12 if "than" in relation else 24):
            about = matches(scene, first) + matches(scene, second)
            prompt = f"answer en is the {first} {relation} the {second}?"
            return Question("compare", prompt, ["yes" if apart > 0 else "no"], about=about)
    return None


def _marked(scene, rng):
    if scene.mark is None:
        return None
    return Question("marked", "answer en what is in the red box?", [name(scene.things[scene.mark])], about=[scene.mark])


ASK = {
    "caption": _caption, "colour": _colour, "shape": _shape, "count": _count, "yesno": _yesno, "where": _where,
    "detect": _detect, "segment": _segment, "ocr": _ocr, "caption_de": _caption_in("de", GERMAN),
    "caption_fr": _caption_in("fr", FRENCH), "size": _size, "compare": _compare, "marked": _marked,
}
