/** The bundled model on the bundled pictures. */

import { join } from "@std/path";
import { collect, type Pipeline } from "../lib/mod.ts";

/** One line of `pictures.json`: a bundled picture, what is asked, and what the model says. */
interface Example {
  readonly image: string;
  readonly prompt: string;
  readonly answer: string;
}

/** The bundled examples and the directory of their pictures. */
export async function examples(): Promise<{ directory: string; list: readonly Example[] }> {
  const directory = join(import.meta.dirname!, "tiny/pictures");
  return { directory, list: JSON.parse(await Deno.readTextFile(join(directory, "pictures.json"))) };
}

/** Asks every bundled question and prints each answer as it comes. */
export async function demo(
  pipeline: Pipeline,
  print: (text: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { directory, list } = await examples();
  for (const { image, prompt } of list) {
    if (signal.aborted) return;
    await print(`${image}  ${prompt}\n  `);
    const start = performance.now();
    const bytes = await Deno.readFile(join(directory, image));
    const events = pipeline.answer({ images: [bytes], prompt }, signal);
    const answer = await collect(async function* () {
      for await (const event of events) {
        if (event.type === "token") await print(event.text);
        yield event;
      }
    }());
    const boxes = answer.items.length ? `, ${answer.items.length} boxes` : "";
    await print(`\n  ${(performance.now() - start).toFixed(0)} ms${boxes}\n`);
  }
}
