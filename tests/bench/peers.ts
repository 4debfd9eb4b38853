/**
 * Engines that nobody here wrote, on the same works: each in a process of its own, since onnxruntime's memory never
 * shrinks and its threads are set once.
 */

import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import type { OnnxFormat } from "../../models/onnx_ops.ts";
import type { Contestant } from "./statistics.ts";

/** What measures. */
export type PeerEngine = "onnxruntime-web" | "onnxruntime-node";

export const PEER_ENGINES: readonly PeerEngine[] = ["onnxruntime-web", "onnxruntime-node"];

/** Formats that a work is compared in. Runs of a minute and more are not repeated. */
export const PEER_WORKS: readonly { work: string; weights: OnnxFormat; most?: number }[] = [
  { work: "gemm-f32", weights: "f32" },
  { work: "gemm-int8", weights: "int8" },
  { work: "siglip-224", weights: "int8" },
  { work: "siglip-448", weights: "int8", most: 1 },
  { work: "prefill-264", weights: "int8", most: 2 },
  { work: "prefill-264", weights: "int4", most: 1 },
  { work: "decode-32", weights: "int8" },
  { work: "decode-32", weights: "int4" },
];

/** A line that a peer's process writes: of what its time is made, once; then a run each; or why there is none. */
export interface PeerAnswer {
  readonly layersMeasured?: number;
  readonly ms?: number;
  readonly rssBytes?: number;
  readonly error?: string;
}

/** An engine set up for a work, warm. Its runs resolve to milliseconds. */
export interface Peer extends Contestant {
  readonly engine: PeerEngine;
  readonly weights: OnnxFormat;
  /** Layers that were run, where they stand for all. */
  readonly layersMeasured?: number;
  /** Resident memory of its process after the last run. */
  readonly rssBytes: number;
  /** Why it gives no times any more. */
  readonly failed?: string;
  close(): Promise<void>;
}

/**
 * Starts a peer and waits until it is warm.
 *
 * @throws {Error} with the reason where the engine cannot be had or fails.
 */
export async function openPeer(
  { work, weights, most }: (typeof PEER_WORKS)[number],
  engine: PeerEngine,
  threads: number,
): Promise<Peer> {
  const script = new URL("peer_ort.ts", import.meta.url).pathname;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--no-lock", script, work, weights, engine, `${threads}`],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const stdin = child.stdin.getWriter();
  const lines = createInterface({ input: Readable.fromWeb(child.stdout as never) })[Symbol.asyncIterator]();
  const close = async () => {
    await stdin.close().catch(() => {});
    await child.status;
  };
  const answer = async (): Promise<PeerAnswer> => {
    const { value, done } = await lines.next();
    return done ? { error: "its process ended" } : JSON.parse(value);
  };
  const { layersMeasured, error } = await answer();
  if (error !== undefined) {
    await close();
    throw new Error(error);
  }
  let [rssBytes, failed] = [0, undefined as string | undefined];
  return {
    ...{ engine, weights, most, layersMeasured, close },
    get rssBytes() {
      return rssBytes;
    },
    get failed() {
      return failed;
    },
    async run() {
      if (failed !== undefined) return NaN;
      await stdin.write(new TextEncoder().encode("\n"));
      const found = await answer();
      failed = found.error;
      rssBytes = found.rssBytes ?? rssBytes;
      return found.ms ?? NaN;
    },
  };
}
