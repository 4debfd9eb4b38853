/** A slower machine than this one. */

/** The same object, whose promises take longer by what is said, from the name of what makes them and the time they took. */
export function slower<T extends object>(
  stage: T,
  moreMs: (name: string | symbol, tookMs: number) => number,
): T {
  return new Proxy(stage, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        const since = performance.now();
        const made = value.apply(target, args);
        if (!(made instanceof Promise)) return made;
        return made.then(async (it) => {
          const waitMs = moreMs(name, performance.now() - since);
          if (waitMs > 0) await new Promise((wake) => setTimeout(wake, waitMs));
          return it;
        });
      };
    },
  });
}
