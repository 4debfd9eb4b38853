/** A Worker that does with its Cloudflare store what it is told by HTTP, and shows what its queue brought. */

import {
  type CloudflareParts,
  createCloudflareStore,
  type ObjectNamespace,
  type QueueBinding,
  type QueueMessage,
  type R2Bucket,
} from "../../lib/store/cloudflare.ts";

export { RecordsObject } from "../../lib/store/cloudflare.ts";
export { JournalObject } from "../../lib/store/journals.ts";

interface Env {
  readonly RECORDS: ObjectNamespace;
  readonly JOURNALS: ObjectNamespace;
  readonly BLOBS: R2Bucket;
  readonly JOBS: QueueBinding;
}

/** What a message asks of whoever gets it: how often to give it back, after how long, and how long to hold it. */
export interface Plan {
  readonly retries?: number;
  readonly retryMs?: number;
  readonly holdMs?: number;
  /** How often to die over it. */
  readonly deaths?: number;
}

/** What became of a message. */
export interface Brought {
  readonly id: string;
  readonly attempts: number;
  readonly at: number;
  readonly settled?: boolean;
}

const brought: Brought[] = [];

const open = (env: Env, name?: string) => {
  const parts: CloudflareParts = {
    ...env,
    records: env.RECORDS,
    blobs: env.BLOBS,
    name,
    queues: { jobs: env.JOBS, webhooks: env.JOBS },
  };
  return createCloudflareStore(parts);
};

/** `/ROOM/METHOD?name=…`, arguments as a JSON array in the header `arguments`, bytes as the body. */
export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const { pathname, searchParams } = new URL(request.url);
    const [, room, method] = pathname.split("/");
    if (room === "journal") {
      return await env.JOURNALS.get(env.JOURNALS.idFromName(method)).fetch("https://here/", request);
    }
    const { records, blobs, queue } = open(env, searchParams.get("name") ?? undefined);
    if (room === "brought") return Response.json(brought);
    if (room === "object") {
      return await env.RECORDS.get(env.RECORDS.idFromName("here")).fetch("https://here/", request);
    }
    // deno-lint-ignore no-explicit-any -- whatever the suite calls
    const target: any = { records, blobs, queue: queue("jobs") }[room];
    if (!target) return new Response("ready", { status: 404 });
    const args = JSON.parse(decodeURIComponent(request.headers.get("arguments") ?? "[]"));
    // JSON has no undefined.
    const plain = args.map((it: unknown) => it ?? undefined);
    if (method === "put") plain.push(new Uint8Array(await request.arrayBuffer()));
    try {
      const result = target[method](...plain);
      const value = Symbol.asyncIterator in result ? await Array.fromAsync(result) : await result;
      if (value instanceof Uint8Array) return new Response(value as BodyInit);
      return Response.json(value ?? null);
    } catch (error) {
      const { name, message, code } = error as Error & { code?: string };
      return Response.json({ name, message, code }, { status: 500 });
    }
  },

  async queue({ messages }: { messages: readonly QueueMessage[] }, env: Env): Promise<void> {
    for (const message of messages) {
      const delivery = await open(env).take("jobs", message, 3000);
      if (!delivery) continue;
      const { id, attempts } = delivery;
      const { retries = 0, retryMs = 0, holdMs = 0, deaths = 0 } = delivery.body as Plan;
      const entry = { id, attempts, at: Date.now() };
      if (attempts <= deaths) {
        brought.push(entry);
        throw new Error("died");
      }
      await new Promise((resolve) => setTimeout(resolve, holdMs));
      const settled = attempts <= retries ? await delivery.retry(retryMs) : await delivery.ack();
      brought.push({ ...entry, settled: settled && !await delivery.ack() });
    }
  },
};
