/** Waiting for what another program, or a task of this one, will have done. */

/** Ends when `holds` does. @throws {Error} when it does not within `ms`. */
export async function until(holds: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  const end = performance.now() + ms;
  while (!await holds()) {
    if (performance.now() > end) throw new Error(`expected within ${ms} ms: ${holds}`);
    await new Promise((wake) => setTimeout(wake, 2));
  }
}
