/** What was used lately, in this process's memory. */

/** Values by key within a limit of bytes; the least recently used is forgotten first. */
export class Recent<T> {
  /** In the order of use, oldest first. */
  readonly #values = new Map<string, T>();
  #sizeBytes = 0;

  /**
   * @param maxBytes of all values together; 0 keeps nothing.
   * @param bytesOf what one value takes; always the same for the same value.
   */
  constructor(readonly maxBytes: number, private readonly bytesOf: (value: T) => number) {}

  /** Bytes of all values held now. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The value under a key, not to be written to. */
  get(key: string): T | undefined {
    const value = this.#values.get(key);
    if (value !== undefined) {
      this.#values.delete(key);
      this.#values.set(key, value);
    }
    return value;
  }

  /** Keeps a value, unless it alone exceeds the limit. */
  set(key: string, value: T): void {
    this.#drop(key);
    if (this.bytesOf(value) > this.maxBytes) return;
    this.#values.set(key, value);
    this.#sizeBytes += this.bytesOf(value);
    for (const oldest of this.#values.keys()) {
      if (this.#sizeBytes <= this.maxBytes) break;
      this.#drop(oldest);
    }
  }

  #drop(key: string): void {
    const value = this.#values.get(key);
    if (value === undefined) return;
    this.#sizeBytes -= this.bytesOf(value);
    this.#values.delete(key);
  }
}
