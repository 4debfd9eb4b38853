"""Bar charts: two to five bars of different colours, values from 1 to 10, grid lines and numbers at every second one."""

from drawing import COLOUR_NAMES, COLOURS, SIZE, Canvas, Word
from questions import Question

UNIT, LEFT = 18, 32


class Bar:
    """x, y of the upper left corner, width and height in even pixels. A bar is a thing without a shape."""

    __slots__ = ("colour", "value", "x", "y", "width", "height", "rgb")
    shape = None

    def __init__(self, colour, value, x, floor, width, rgb):
        self.colour, self.value, self.x, self.width, self.rgb = colour, value, x, width, rgb
        self.y, self.height = floor - UNIT * value, UNIT * value


class Chart:
    """`things` are the bars from the left."""

    def __init__(self, rng):
        shade = rng.randint(232, 255)
        self.ground, self.grid = (shade,) * 3, (shade - rng.randint(36, 64),) * 3
        self.floor = SIZE - 2 * rng.randint(6, 14)
        self.words, self.things, self.mark = [], [], None
        count = rng.randint(2, 5)
        slot = (SIZE - LEFT - 4) // count // 2 * 2
        width = 2 * rng.randint(10, min(16, slot // 2 - 3))
        for i, colour in enumerate(rng.sample(COLOUR_NAMES, count)):
            rgb = tuple(min(255, max(0, c + rng.randint(-10, 10))) for c in COLOURS[colour])
            x = LEFT + i * slot + (slot - width) // 4 * 2
            self.things.append(Bar(colour, rng.randint(1, 10), x, self.floor, width, rgb))

    def draw(self):
        """RGB bytes, rows from the top: SIZE * SIZE * 3."""
        canvas = Canvas()
        canvas.fill(0, 0, SIZE, SIZE, self.ground)
        for value in range(0, 11, 2):
            y = self.floor - UNIT * value
            canvas.fill(LEFT - 4, y - 1, SIZE - LEFT, 2, self.grid)
            word = Word(str(value), 0, y - 7, 2, (60, 60, 60))
            word.x = LEFT - 6 - word.width
            canvas.word(word)
        for bar in self.things:
            canvas.fill(bar.x, bar.y, bar.width, bar.height, bar.rgb)
        canvas.fill(LEFT - 4, self.floor, SIZE - LEFT, 2, (60, 60, 60))
        return canvas.pixels


def ask(chart, rng):
    """A value, the highest or lowest bar where there is one, or how many bars there are."""
    bars, dice = chart.things, rng.random()
    if dice < 0.6:
        bar = rng.choice(bars)
        prompt, answer, about = f"answer en what is the value of the {bar.colour} bar?", str(bar.value), [bars.index(bar)]
    elif dice < 0.9:
        most = rng.random() < 0.5
        values = sorted((b.value for b in bars), reverse=most)
        bar = next(b for b in bars if b.value == values[0])
        if values[0] == values[1]:
            return ask(chart, rng)
        prompt = f"answer en which bar is the {'highest' if most else 'lowest'}?"
        answer, about = bar.colour, [bars.index(bar)]
    else:
        prompt, answer, about = "answer en how many bars are there?", str(len(bars)), range(len(bars))
    return Question("chart", prompt, [answer], about=about)
