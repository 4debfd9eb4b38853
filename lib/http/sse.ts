/** Server-sent events: how one is written, and an answer as a stream of them. Format: WHATWG HTML, section 9.2. */

import type { AnswerEvent } from "../types.ts";
import type { Problem } from "./problem.ts";

/**
 * One event as the wire has it. Every line of `data` gets its own `data:`, so that a reader has them back joined by
 * LF whatever ended them.
 *
 * @throws {RangeError} when `id` or `event` holds a line end or NUL: that would begin another field.
 */
export function encodeEvent(
  event: { readonly id?: string; readonly event?: string; readonly data: string },
): string {
  let text = "";
  for (const field of ["id", "event"] as const) {
    const value = event[field];
    if (value === undefined) continue;
    if (/[\r\n\0]/.test(value)) {
      throw new RangeError(`SSE ${field}: expected one line, found ${JSON.stringify(value)}`);
    }
    text += `${field}: ${value}\n`;
  }
  for (const line of event.data.split(/\r\n|\r|\n/)) text += `data: ${line}\n`;
  return text + "\n";
}

/** Bytes that may wait for a slow reader before the answer waits for it too: a long answer, but not many of them. */
const WAITING_BYTES = 64 * 1024;

/**
 * An answer as SSE bytes, `id` counting from 0. Its events are drawn only while less than 64 KiB wait to be sent.
 *
 * An error within the answer becomes a last event `error` with `{ code, message }`.
 *
 * @param first What the first `next()` gave: by then everything wrong with the question has shown.
 * @param stop Called once, when the reader goes away before the end.
 * @param end Called once, however the stream ends.
 */
export function eventStream(
  first: IteratorResult<AnswerEvent>,
  rest: AsyncIterator<AnswerEvent>,
  { problemOf, stop, end }: { problemOf(error: unknown): Problem; stop(): void; end(): void },
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let next: IteratorResult<AnswerEvent> | undefined = first;
  let id = 0;
  let open = true;

  function encode(event: string, data: unknown): Uint8Array {
    return encoder.encode(encodeEvent({ id: String(id++), event, data: JSON.stringify(data) }));
  }

  function finish(): void {
    if (!open) return;
    open = false;
    end();
  }

  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { done, value } = next ?? await rest.next();
        next = undefined;
        // The reader may have gone while the answer was awaited.
        if (!open) return;
        if (!done) return controller.enqueue(encode(value.type, value));
      } catch (error) {
        if (!open) return;
        controller.enqueue(encode("error", problemOf(error)));
      }
      controller.close();
      finish();
    },
    async cancel() {
      if (!open) return;
      stop();
      finish();
      await rest.return?.();
    },
  }, { highWaterMark: WAITING_BYTES, size: (chunk) => chunk.byteLength });
}
