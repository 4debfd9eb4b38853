/** Server-sent events: how one is written, and a recording as a stream of them. Format: WHATWG HTML, section 9.2. */

import type { Recording } from "./recording.ts";

/** One event, before it is written. Without a name it is a `message`. */
export interface ServerEvent {
  readonly event?: string;
  readonly data: string;
}

/**
 * One event as the wire has it. Every line of `data` gets its own `data:`, so that a reader has them back joined by
 * LF whatever ended them.
 *
 * @throws {RangeError} when `id` or `event` holds a line end or NUL: that would begin another field.
 */
export function encodeEvent(event: ServerEvent & { readonly id?: string }): string {
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

/** A proxy takes a silent connection for a dead one after a minute or so. */
export const HEARTBEAT_MS = 15_000;

/** How long a client waits before it comes back, milliseconds. */
const RETRY_MS = 1000;

/** How a recording is read. */
export interface StreamOptions {
  /** The first event to send; those before it the reader has. */
  readonly from: number;
  readonly heartbeatMs: number;
  /** What an error within the answer is told as: the stream's last event. */
  failed(error: unknown): ServerEvent;
  /** Called once, when the reader goes away or has all. */
  leave(): void;
}

/**
 * A recording as SSE bytes: `retry`, then its events from `from` on, a comment whenever none came for `heartbeatMs`.
 * Events are drawn only while less than 64 KiB wait to be sent.
 */
export function eventStream(recording: Recording, options: StreamOptions): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let at = options.from;
  let pending: Promise<Uint8Array | undefined> | undefined;
  let open = true;

  function finish(): void {
    if (!open) return;
    open = false;
    options.leave();
  }

  return new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(encoder.encode(`retry: ${RETRY_MS}\n\n`));
    },
    async pull(controller) {
      try {
        pending ??= recording.frame(at);
        const frame = await within(options.heartbeatMs, pending);
        // The reader may have gone while the answer was awaited.
        if (!open) return;
        if (frame === "late") return controller.enqueue(encoder.encode(": heartbeat\n\n"));
        pending = undefined;
        at++;
        if (frame) return controller.enqueue(frame);
      } catch (error) {
        if (!open) return;
        controller.enqueue(encoder.encode(encodeEvent({ id: String(at), ...options.failed(error) })));
      }
      controller.close();
      finish();
    },
    cancel: finish,
  }, { highWaterMark: WAITING_BYTES, size: (chunk) => chunk.byteLength });
}

/** What a promise gives, or `late` when it has given nothing after so long. */
export async function within<T>(ms: number, promise: Promise<T>): Promise<T | "late"> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<"late">((resolve) => timer = setTimeout(() => resolve("late"), ms));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
