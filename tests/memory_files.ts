/** Model directories for the tests: made in memory, or read from the repository with some files changed. */

import type { ModelFiles } from "../lib/types.ts";

/** Files held in memory; strings and plain objects become bytes. */
export function memoryFiles(
  files: Record<string, Uint8Array | string | object>,
  place = "memory",
): ModelFiles {
  const bytes = new Map(
    Object.entries(files).map(([name, value]) => {
      if (value instanceof Uint8Array) return [name, value] as const;
      return [
        name,
        new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value)),
      ] as const;
    }),
  );
  return {
    place,
    list: () => Promise.resolve([...bytes.keys()]),
    size: (name) => Promise.resolve(bytes.get(name)?.length),
    read(name, start = 0, end = bytes.get(name)!.length) {
      if (end > bytes.get(name)!.length) return Promise.reject(new RangeError(`${name} ends before ${end}`));
      return Promise.resolve(bytes.get(name)!.slice(start, end));
    },
  };
}

/** All files of a directory as bytes, by name. */
export function directoryBytes(directory: string): Record<string, Uint8Array> {
  return Object.fromEntries(
    [...Deno.readDirSync(directory)].filter((it) => it.isFile).map((
      { name },
    ) => [name, Deno.readFileSync(`${directory}/${name}`)]),
  );
}
