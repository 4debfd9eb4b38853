/** Random numbers that are the same for the same seed on every machine. */

/** Draws by sfc32 (Chris Doty-Humphrey, PractRand), seeded by whole numbers. */
export class Chance {
  #a: number;
  #b: number;
  #c: number;
  #count = 1;

  constructor(a: number, b = 0, c = 0) {
    [this.#a, this.#b, this.#c] = [a | 0, b | 0, c | 0];
    for (let i = 0; i < 12; i++) this.uniform();
  }

  /** In [0, 1). */
  uniform(): number {
    const t = (this.#a + this.#b | 0) + this.#count | 0;
    this.#count = this.#count + 1 | 0;
    this.#a = this.#b ^ this.#b >>> 9;
    this.#b = this.#c + (this.#c << 3) | 0;
    this.#c = (this.#c << 21 | this.#c >>> 11) + t | 0;
    return (t >>> 0) / 2 ** 32;
  }

  /** Mean 0, standard deviation 1 (Box and Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** The exponential of a normal number: median 1. */
  lognormal(sigma: number): number {
    return Math.exp(sigma * this.normal());
  }

  /** Mean 1, without memory. */
  exponential(): number {
    return -Math.log(1 - this.uniform());
  }

  /** At least 1, heavier in the tail the smaller `alpha`. */
  pareto(alpha: number): number {
    return (1 - this.uniform()) ** (-1 / alpha);
  }

  /** One of several, by weight. */
  pick<T extends { readonly weight: number }>(among: readonly T[]): T {
    let left = this.uniform() * among.reduce((sum, it) => sum + it.weight, 0);
    for (const it of among) if ((left -= it.weight) < 0) return it;
    return among[among.length - 1];
  }
}
