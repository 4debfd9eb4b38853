/** Waiting for what another program, or a task of this one, will have done. */

/** Ends when `holds` does. @throws {Error} when it does not within `ms`. */
export async function until(holds: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  const end = performance.now() + ms;
  while (!await holds()) {
    if (performance.now() > end) throw new Error(`expected within ${ms} ms: ${holds}`);
    await new Promise((wake) => setTimeout(wake, 2));
  }
}

/** What comes of it. @throws {Error} naming `what` when nothing does within `ms`: a test that waits for ever says nothing. */
export async function within<T>(what: string, it: Promise<T>, ms = 60_000): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`expected within ${ms} ms: ${what}`)), ms);
  try {
    return await Promise.race([it, promise]);
  } finally {
    clearTimeout(timer);
  }
}
