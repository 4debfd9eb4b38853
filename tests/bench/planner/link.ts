/** A link between two ports of this machine that delays and slows down what passes. */

/** What a link is like now. */
export interface Shape {
  readonly rttMs: number;
  /** 10⁶ bits a second upward; and downward, where there is not room enough. */
  readonly mbps: number;
  readonly downMbps?: number;
}

/** What leaves at once takes the link at most so long. */
const PIECE_MS = 20;

/** Passes bytes on as its shape says. */
export class Link {
  shape: Shape = { rttMs: 0, mbps: 1000 };
  /** By how much the next piece upward gets stuck, milliseconds. */
  stallMs = 0;
  readonly #listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  readonly #open = new Set<Deno.Conn>();

  /** @param far the port that it leads to; where nobody listens, connections end at once. */
  constructor(public far: number) {
    this.#listen();
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#listener.addr as Deno.NetAddr).port}`;
  }

  close(): void {
    this.#listener.close();
    for (const it of this.#open) closed(it);
  }

  async #listen(): Promise<void> {
    for await (const near of this.#listener) this.#join(near).catch(() => closed(near));
  }

  async #join(near: Deno.Conn): Promise<void> {
    const far = await Deno.connect({ port: this.far, hostname: "127.0.0.1" });
    for (const it of [near, far]) this.#open.add(it);
    try {
      await Promise.all([this.#pass(near, far, true), this.#pass(far, near, false)]);
    } finally {
      for (const it of [near, far]) {
        if (this.#open.delete(it)) closed(it);
      }
    }
  }

  /** Every piece leaves when the one before has, and arrives half a round trip later. */
  async #pass(from: Deno.Conn, to: Deno.Conn, upward: boolean): Promise<void> {
    let free = 0;
    let written = Promise.resolve();
    const pass = async (piece: Uint8Array, at: number) => {
      await new Promise((wake) => setTimeout(wake, Math.max(0, at - performance.now())));
      for (let done = 0; done < piece.length;) done += await to.write(piece.subarray(done));
    };
    for await (const all of from.readable.values({ preventCancel: true })) {
      const { rttMs, mbps, downMbps = Infinity } = this.shape;
      const perMs = (upward ? mbps : downMbps) / 0.008;
      const size = Math.max(1, Math.min(all.length, Math.floor(PIECE_MS * perMs)));
      free = Math.max(free, performance.now());
      if (upward) {
        free += this.stallMs;
        this.stallMs = 0;
      }
      for (let start = 0; start < all.length; start += size) {
        const piece = all.subarray(start, start + size);
        const at = (free += piece.length / perMs) + rttMs / 2;
        written = written.then(() => pass(piece, at));
      }
      written.catch(() => {});
      // What is not yet on its way is not read.
      const ahead = free - performance.now() - PIECE_MS;
      if (ahead > 0) await new Promise((wake) => setTimeout(wake, ahead));
    }
    await written;
    await to.closeWrite();
  }
}

/** Closes a connection that its other end may have closed before. */
function closed(connection: Deno.Conn): void {
  try {
    connection.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}
