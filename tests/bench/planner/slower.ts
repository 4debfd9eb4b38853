/** A slower machine than this one. */

/** The same object, whose promises take so many times as long, by the name of what makes them. */
export function slower<T extends object>(stage: T, by: (name: string | symbol) => number): T {
  return new Proxy(stage, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        const since = performance.now();
        const made = value.apply(target, args);
        if (!(made instanceof Promise)) return made;
        return made.then(async (it) => {
          const tookMs = performance.now() - since;
          await new Promise((wake) => setTimeout(wake, (by(name) - 1) * tookMs));
          return it;
        });
      };
    },
  });
}
