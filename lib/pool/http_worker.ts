/** The serving end of a pool over HTTP; what goes to and fro stands in http.ts. */

import type { WorkerMetrics } from "../metrics.ts";
import { HEARTBEAT_MS, type Line, STATUS } from "./http.ts";
import { LOAD_HEADER, writeLoad } from "./orca.ts";
import { PoolError, type PoolEvent } from "./pool.ts";
import type { Load, Seat, Serving } from "./serving.ts";
import type { Verify } from "./signature.ts";
import { decodeWork, HEADER_BYTES, messageBytes, type ModelShape } from "./work.ts";

/** A signature is some 400 characters. */
const MAX_SIGNATURE_BYTES = 4096;
/** What of a message takes longer than this does not come. */
const PART_MS = 10_000;

/** What the serving end is made of. */
export interface HttpWorkerParts {
  /** One that tells no load has it told to nobody. */
  readonly serving: Pick<Serving, "enter" | "predictMs" | "run"> & Partial<Pick<Serving, "load">>;
  readonly model: ModelShape;
  readonly verify: Verify;
  readonly metrics: WorkerMetrics;
  /** Told what went wrong here, not what was wrong with work. */
  readonly onError: (error: unknown) => void;
}

/**
 * Answers `POST /work`. Whether there is room is decided by the first bytes; what is wrong with work is a problem document,
 * what goes wrong later a last line.
 */
export async function takeWork(request: Request, parts: HttpWorkerParts): Promise<Response> {
  const { serving, model, verify, metrics, onError } = parts;
  const number = (name: string) => Number(request.headers.get(name) || Infinity);
  const refused = (error: unknown) => {
    if (!(error instanceof PoolError)) onError(error);
    const known = error instanceof PoolError ? error : new PoolError("failed", "The worker failed");
    metrics.answers.add(1, known.code);
    return known;
  };
  const now = serving.load?.(); // before this answer is part of it
  const load: Record<string, string> = now ? { [LOAD_HEADER]: loadOf(now) } : {};
  let seat: Seat | undefined;
  try {
    if (request.method !== "POST") throw new PoolError("malformed", "Cannot take work: expected POST");
    const body = new Body(request);
    await body.until(HEADER_BYTES);
    const size = messageBytes(body.bytes, model);
    const tokens = number("max-tokens");
    const predictedMs = serving.predictMs(tokens);
    seat = serving.enter(tokens, number("deadline-ms"));
    await body.until(size + MAX_SIGNATURE_BYTES);
    const { bytes } = body;
    const work = await decodeWork(bytes.subarray(0, size), model);
    const token = new TextDecoder().decode(bytes.subarray(size));
    const key = await verify(token, model.revision, bytes.subarray(size - 32, size));
    if (work.images.stage !== "pixels" && !key.features) {
      throw new PoolError("forbidden", `Cannot take ${work.images.stage} of ${key.kid}: expected pixels`);
    }
    const stop = new AbortController();
    const signal = AbortSignal.any([request.signal, stop.signal]);
    const events = serving.run(work, { signal });
    const lines = written(observed(events, metrics), (error) => signal.aborted ? undefined : refused(error));
    const { leave } = seat;
    return new Response(
      new ReadableStream({
        async pull(controller) {
          const { done, value } = await lines.next();
          if (!done) return controller.enqueue(value);
          leave();
          controller.close();
        },
        async cancel() {
          stop.abort();
          await lines.return(undefined);
          leave();
        },
      }, { highWaterMark: 0 }),
      {
        headers: {
          "content-type": "application/x-ndjson",
          "predicted-ms": `${Math.round(predictedMs)}`,
          ...load,
        },
      },
    );
  } catch (error) {
    seat?.leave();
    return problem(refused(error), load);
  }
}

function loadOf({ maxActive: slots, active: running, waiting, firstMs, tokens, tokenMs }: Load): string {
  return writeLoad({ slots, running, waiting, serviceMs: firstMs + tokens * tokenMs });
}

/** A body that fills up. */
class Body {
  bytes: Uint8Array = new Uint8Array();
  readonly #reader;

  constructor({ body }: Request) {
    this.#reader = body?.getReader();
  }

  /** Reads until there are so many bytes, or no more to come. @throws {PoolError} `length` when they come too slowly. */
  async until(length: number): Promise<void> {
    const parts = [this.bytes];
    let filled = this.bytes.length;
    while (filled < length) {
      const { done, value } = await this.#next();
      if (done) break;
      parts.push(value);
      filled += value.length;
    }
    this.bytes = await new Blob(parts as BlobPart[]).bytes();
  }

  async #next(): Promise<ReadableStreamReadResult<Uint8Array>> {
    if (!this.#reader) return { done: true, value: undefined };
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      const error = new PoolError("length", `Cannot take work: nothing came within ${PART_MS} ms`);
      timer = setTimeout(() => reject(error), PART_MS);
    });
    try {
      return await Promise.race([this.#reader.read(), late]);
    } catch (cause) {
      if (cause instanceof PoolError) throw cause;
      throw new PoolError("length", "Cannot take work: the message broke off", undefined, { cause });
    } finally {
      clearTimeout(timer);
    }
  }
}

async function* observed(
  events: AsyncIterable<PoolEvent>,
  metrics: WorkerMetrics,
): AsyncGenerator<PoolEvent> {
  const since = performance.now();
  let first = true;
  let end: string | undefined = "cancelled"; // as long as nothing else is heard
  try {
    for await (const event of events) {
      if (event.type === "token") {
        if (first) metrics.timeToFirstToken.observe((performance.now() - since) / 1000);
        first = false;
        metrics.tokens.add(1);
      } else if (event.type === "done") end = event.finishReason;
      yield event;
    }
  } catch (error) {
    end = undefined; // counted as what it is told as
    throw error;
  } finally {
    if (end) metrics.answers.add(1, end);
  }
}

/** Events as lines, and an empty one whenever there was none for a second. */
async function* written(
  events: AsyncGenerator<PoolEvent>,
  refused: (error: unknown) => PoolError | undefined,
): AsyncGenerator<Uint8Array> {
  const line = (value?: Line) => new TextEncoder().encode(value ? `${JSON.stringify(value)}\n` : "\n");
  let timer: ReturnType<typeof setTimeout> | undefined;
  const quiet = () => new Promise<void>((wake) => timer = setTimeout(() => wake(), HEARTBEAT_MS));
  try {
    yield line(); // so that whoever asks knows at once that it was taken
    for (let next = events.next();;) {
      const result = await Promise.race([next, quiet()]);
      clearTimeout(timer);
      if (!result) yield line();
      else if (result.done) return;
      else {
        yield line(result.value);
        next = events.next();
      }
    }
  } catch (error) {
    const known = refused(error);
    if (!known) return;
    const { code, message, predictedMs } = known;
    yield line({ type: "refused", code, message, predictedMs });
  } finally {
    clearTimeout(timer);
    await events.return(undefined);
  }
}

/** RFC 9457. */
function problem({ code, message, predictedMs }: PoolError, load: Record<string, string>): Response {
  const status = STATUS[code] ?? 500;
  const seconds = Math.min(60, Math.max(1, Math.ceil((predictedMs ?? 0) / 1000)));
  return Response.json({ type: "about:blank", title: code, status, detail: message, code, predictedMs }, {
    status,
    headers: {
      "content-type": "application/problem+json",
      ...load,
      ...status === 503 && { "retry-after": `${seconds}` },
    },
  });
}
