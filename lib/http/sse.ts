/** Server-sent events: how one is written, and an answer as a stream of them. Format: WHATWG HTML, section 9.2. */

import { RequestError } from "../errors.ts";
import type { Reading } from "./recording.ts";

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

/** How an answer is read. */
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
 * An answer as SSE bytes: `retry`, then its events from `from` on, a comment whenever none came for `heartbeatMs`.
 * Events are drawn only while less than 64 KiB wait to be sent.
 */
export function eventStream(
  reading: Reading,
  { from, heartbeatMs, failed, leave }: StreamOptions,
): ReadableStream<Uint8Array> {
  let at = from;
  return frameStream(() => reading.frame(at++), {
    heartbeatMs,
    failed: (error) => encodeEvent({ id: String(at - 1), ...failed(error) }),
    leave,
  });
}

/** How frames become a stream. */
export interface FrameOptions extends Pick<StreamOptions, "heartbeatMs" | "leave"> {
  /** The last event of a stream that an error ends; without it the stream itself fails. */
  failed?(error: unknown): string;
}

/**
 * Events that are written already, as SSE bytes in the way {@link eventStream} tells.
 *
 * @param next the next event, undefined after the last; asked for only when the one before has come.
 */
export function frameStream(
  next: () => Promise<Uint8Array | undefined>,
  { heartbeatMs, failed, leave }: FrameOptions,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let pending: Promise<Uint8Array | undefined> | undefined;
  let open = true;

  function finish(): void {
    if (!open) return;
    open = false;
    leave();
  }

  return new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(encoder.encode(`retry: ${RETRY_MS}\n\n`));
    },
    async pull(controller) {
      try {
        pending ??= next();
        const frame = await within(heartbeatMs, pending);
        // The reader may have gone while the event was awaited.
        if (!open) return;
        if (frame === "late") return controller.enqueue(encoder.encode(": heartbeat\n\n"));
        pending = undefined;
        if (frame) return controller.enqueue(frame);
      } catch (error) {
        if (!open) return;
        if (!failed) {
          finish();
          throw error;
        }
        controller.enqueue(encoder.encode(failed(error)));
      }
      controller.close();
      finish();
    },
    cancel: finish,
  }, { highWaterMark: WAITING_BYTES, size: (chunk) => chunk.byteLength });
}

/**
 * The number of the last event that a client has, by its `Last-Event-ID`; undefined where it has none.
 *
 * @throws {RequestError} `parameter_invalid` for what is no number of ours.
 */
export function lastEventId(header: string | undefined): number | undefined {
  if (header === undefined || header === "") return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header);
  throw new RequestError(
    "parameter_invalid",
    "Cannot resume: expected a Last-Event-ID that this server gave",
  );
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
