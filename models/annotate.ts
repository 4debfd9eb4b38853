/** An answer drawn on its picture: boxes, labels and masks. */

import type { Item, Picture } from "../lib/mod.ts";
import { pixelsOf } from "../lib/mod.ts";
import { inPixels } from "../lib/text/parse.ts";

type Colour = readonly [red: number, green: number, blue: number];

/** One a label, in the order the labels come; told apart also by people who see fewer colours (Okabe and Ito). */
const COLOURS: readonly Colour[] = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [204, 121, 167],
  [240, 228, 66],
  [213, 94, 0],
  [0, 114, 178],
];

/** Share of the colour in a mask's pixels. */
const MASK_SHARE = 0.45;

/** Draws items on a copy of the picture. Boxes go by their pixels where those are known; labels are in capitals. */
export function annotate(picture: Picture, items: readonly Item[]): Picture {
  const canvas = new Canvas(picture);
  const labels = [...new Set(items.map((it) => it.label))];
  const colourOf = (item: Item) => COLOURS[labels.indexOf(item.label) % COLOURS.length];
  for (const item of items) {
    if (item.mask && "counts" in item.mask) canvas.mask(pixelsOf(item.mask), colourOf(item));
  }
  for (const item of items) canvas.box(sides(item, picture), colourOf(item));
  for (const item of items) {
    const { left, top } = sides(item, picture);
    canvas.label(`${item.label} ${item.confidence.toFixed(2)}`, left, top, colourOf(item));
  }
  return canvas.picture;
}

function sides(item: Item, picture: Picture) {
  const boxPixels = item.boxPixels ?? inPixels(item.box, picture);
  return { top: boxPixels.yMin, left: boxPixels.xMin, bottom: boxPixels.yMax, right: boxPixels.xMax };
}

class Canvas {
  readonly picture: Picture;
  /** Width of a line, and side of a letter's dot, in pixels. */
  readonly #line: number;
  readonly #dot: number;

  constructor({ width, height, data }: Picture) {
    this.picture = { width, height, data: data.slice() };
    const side = Math.min(width, height);
    this.#line = Math.max(1, Math.round(side / 200));
    this.#dot = Math.max(1, Math.round(side / 160));
  }

  mask(inside: Uint8Array, colour: Colour): void {
    const { data } = this.picture;
    inside.forEach((it, at) => {
      if (!it) return;
      for (let c = 0; c < 3; c++) {
        data[3 * at + c] = Math.round((1 - MASK_SHARE) * data[3 * at + c] + MASK_SHARE * colour[c]);
      }
    });
  }

  /** The frame of [left, right) × [top, bottom), its lines inside. */
  box(at: { top: number; left: number; bottom: number; right: number }, colour: Colour): void {
    const { top, left, bottom, right } = at, line = this.#line;
    this.#fill(left, top, right, top + line, colour);
    this.#fill(left, bottom - line, right, bottom, colour);
    this.#fill(left, top, left + line, bottom, colour);
    this.#fill(right - line, top, right, bottom, colour);
  }

  /** Black on the colour, above the place where there is room for it, below otherwise. */
  label(text: string, left: number, top: number, colour: Colour): void {
    const dot = this.#dot, height = 7 * dot, width = (4 * [...text].length + 1) * dot;
    const x = Math.max(0, Math.min(left, this.picture.width - width));
    const y = top >= height ? top - height : top;
    this.#fill(x, y, x + width, y + height, colour);
    for (const [i, character] of [...text.toUpperCase()].entries()) {
      const rows = FONT[character] ?? FONT["?"];
      for (let row = 0; row < 5; row++) {
        for (let column = 0; column < 3; column++) {
          if (!(Number(rows[row]) & (4 >> column))) continue;
          const [dx, dy] = [x + (1 + 4 * i + column) * dot, y + (1 + row) * dot];
          this.#fill(dx, dy, dx + dot, dy + dot, [0, 0, 0]);
        }
      }
    }
  }

  #fill(left: number, top: number, right: number, bottom: number, colour: Colour): void {
    const { width, height, data } = this.picture;
    for (let y = Math.max(0, top); y < Math.min(height, bottom); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, right); x++) data.set(colour, 3 * (y * width + x));
    }
  }
}

/** Letters of 3 × 5 dots: five rows of three bits, from the top, as octal digits. */
// deno-fmt-ignore
const FONT: Readonly<Record<string, string>> = {
  A: "25755", B: "65656", C: "34443", D: "65556", E: "74647", F: "74644", G: "34553", H: "55755", I: "72227",
  J: "11152", K: "55655", L: "44447", M: "57755", N: "65555", O: "25552", P: "65644", Q: "25563", R: "65655",
  S: "34216", T: "72222", U: "55557", V: "55552", W: "55775", X: "55255", Y: "55222", Z: "71247",
  0: "75557", 1: "26227", 2: "61247", 3: "61216", 4: "55711", 5: "74616", 6: "34757", 7: "71222", 8: "75757",
  9: "75716", " ": "00000", ".": "00002", ",": "00024", "-": "00700", _: "00007", ":": "02020", "/": "11244",
  "?": "61202", "!": "22202", "'": "22000", "(": "12221", ")": "42224", "+": "02720", "%": "51245",
};
