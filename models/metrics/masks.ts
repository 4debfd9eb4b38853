/** Scores of masks. A mask is one byte a pixel, row by row, 0 outside. */

/** Pixels in both masks and in either. */
export interface Overlap {
  readonly both: number;
  readonly either: number;
}

/**
 * What two masks of one picture have in common; without the second, which is how a missing answer counts, nothing.
 *
 * @throws {RangeError} when the masks differ in size.
 */
export function overlap(want: Uint8Array, found: Uint8Array = new Uint8Array(want.length)): Overlap {
  if (want.length !== found.length) {
    throw new RangeError(`Cannot compare masks of ${want.length} and ${found.length} pixels`);
  }
  let [both, either] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    both += Number(want[i] > 0 && found[i] > 0);
    either += Number(want[i] > 0 || found[i] > 0);
  }
  return { both, either };
}

/** Intersection over union of one pair, 0 to 1; 0 where both masks are empty. */
export function maskIou({ both, either }: Overlap): number {
  return both / (either || 1);
}

/**
 * The two scores of referring segmentation, 0 to 1: `mean` over pictures of their IoU, and `cumulative`, all pixels in
 * common over all in either, in which large things weigh more.
 *
 * Source: Yu et al. (RefCOCO), arXiv 1608.00272; mean as in big_vision's transfers/segmentation.py, cumulative ("overall
 * IoU") as in Hu et al., arXiv 1603.06180, section 4.1.
 */
export function referringIou(
  pairs: readonly Overlap[],
): { readonly mean: number; readonly cumulative: number } {
  const sum = (of: (it: Overlap) => number) => pairs.reduce((sum, it) => sum + of(it), 0);
  return {
    mean: sum(maskIou) / (pairs.length || 1),
    cumulative: sum((it) => it.both) / (sum((it) => it.either) || 1),
  };
}

/** Masks of one picture, each with its label. */
export interface MaskedScene {
  readonly want: readonly { readonly label: string; readonly pixels: Uint8Array }[];
  readonly found: readonly { readonly label: string; readonly pixels: Uint8Array }[];
}

/**
 * Mean over all wanted things of the IoU of their masks, 0 to 1: each takes the mask under its label that is still free and
 * fits best; a thing without one counts 0.
 */
export function meanIou(scenes: readonly MaskedScene[]): number {
  let [sum, wanted] = [0, 0];
  for (const { want, found } of scenes) {
    const free = [...found];
    for (const { label, pixels } of want) {
      const fits = free.map((it) => it.label === label ? maskIou(overlap(pixels, it.pixels)) : 0);
      const best = fits.indexOf(Math.max(...fits));
      if (best >= 0 && fits[best] > 0) free.splice(best, 1);
      sum += fits[best] ?? 0;
    }
    wanted += want.length;
  }
  return sum / (wanted || 1);
}
