/**
 * How busy a worker is, as it says beside an answer: the header `endpoint-load-metrics` of ORCA (Open Request Cost
 * Aggregation, as Envoy, gRPC and vLLM have it). Ours say it as well, by vLLM's names and two of their own.
 */

import type { WorkerLoad } from "./pool.ts";

/** The header's name. */
export const LOAD_HEADER = "endpoint-load-metrics";

/** For how long what was said is believed. */
const LOAD_MS = 5000;

/** What a header says of others' answers. */
export interface ReportedLoad {
  readonly waiting: number;
  readonly running?: number;
  /** Answers at once, where it tells. */
  readonly slots?: number;
  /** Mean time an answer holds one of them, milliseconds, where it tells. */
  readonly serviceMs?: number;
}

const NAMES = {
  waiting: "num_requests_waiting",
  running: "num_requests_running",
  slots: "max_num_requests",
  serviceMs: "request_service_ms",
} as const;

/** A header's value. */
export function writeLoad(load: Required<ReportedLoad>): string {
  const metrics = Object.entries(NAMES).map(([key, name]) => [name, load[key as keyof typeof NAMES]]);
  return `JSON ${JSON.stringify({ named_metrics: Object.fromEntries(metrics) })}`;
}

/**
 * A header's value, if it says how many wait.
 *
 * @param header `JSON {"named_metrics": {"num_requests_waiting": 2}}` or `TEXT named_metrics.num_requests_waiting=2, …`.
 */
export function readLoad(header: string): ReportedLoad | undefined {
  const [, format, report] = /^\s*(JSON|TEXT)\s+(.*)$/s.exec(header) ?? [];
  if (!format) return undefined;
  let metrics: Record<string, unknown>;
  try {
    metrics = format === "JSON" ? JSON.parse(report).named_metrics : Object.fromEntries(
      report.split(",").map((it) => it.trim().split("=")).map(([name, value]) =>
        [name.replace(/^named_metrics\./, ""), Number(value)] as const
      ),
    );
  } catch {
    return undefined;
  }
  const found = Object.entries(NAMES).flatMap(([key, name]) => {
    const value = metrics?.[name];
    return typeof value === "number" && value >= 0 && value < Infinity ? [[key, value] as const] : [];
  });
  const load: Partial<ReportedLoad> = Object.fromEntries(found);
  return load.waiting === undefined ? undefined : { ...load, waiting: load.waiting };
}

/** What a server's headers said last, until it is too old. */
export class HeardLoad {
  #last: ReportedLoad & { readonly at: number } | undefined;

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** @param more what this side knows, where the header does not tell. */
  take(headers: Headers, more: Partial<ReportedLoad> = {}): void {
    const load = readLoad(headers.get(LOAD_HEADER) ?? "");
    if (load) this.#last = { ...more, ...load, at: this.now() };
  }

  /** The server as a worker; who does not tell its slots has as many as run, and one more unless some wait. */
  worker(name: string): WorkerLoad | undefined {
    if (!this.#last || this.now() - this.#last.at > LOAD_MS) return undefined;
    const { running = 0, waiting, slots = Math.max(1, waiting ? running : running + 1), serviceMs } =
      this.#last;
    return { worker: name, slots: Math.max(1, slots), running, waiting, serviceMs };
  }
}
