/** The environment of a server, read once: the same names on every door. */

import { type Level, LEVELS } from "../lib/http/guard/log.ts";
import type { AppParts } from "../lib/http/app.ts";
import { readSecrets } from "../lib/jobs/signature.ts";
import type { PoolImages } from "../lib/pipeline.ts";
import type { Capacity } from "../lib/pool/serving.ts";
import type { Engine } from "./model.ts";

/** What the environment says about the way to a pool. */
export interface PoolSettings {
  /**
   * Of the broker: `nats:`, `tls:`, `ws:` or `wss:`; of the workers themselves: `http:` or `https:`; or of a server with
   * OpenAI's API: the same after `openai+` or, where it is vLLM, `vllm+`.
   */
  readonly url: string;
  /** The seed by which the broker lets this process in, or the file it is in. */
  readonly nkey?: string;
  /** A file with the certificates to trust beside the well-known ones, PEM. */
  readonly ca?: string;
  /** The private key that signs work, a JWK, or the file it is in; of those who ask. */
  readonly signingKey?: string;
  /** What workers are sent, where it is not pixels; of those who ask. */
  readonly images?: PoolImages;
  /** What a second of the workers' computation costs, in the unit of a budget's `maxCost`; of those who ask. */
  readonly price?: number;
  /** What a server with OpenAI's API wants to hear from those who ask, and what it calls the model. */
  readonly apiKey?: string;
  readonly model?: string;
  /** The broker's address for browsers, `ws:` or `wss:`: their tabs may then become workers. */
  readonly workerPage?: string;
}

/** What the environment says to a worker of a pool. */
export interface WorkerSettings extends Capacity {
  /** The public keys whose work is taken, a JWKS, or the file they are in. */
  readonly trustedKeys?: string;
}

/** What the environment says; the README has the table. */
export interface Settings extends Pick<AppParts, "apiKeys" | "limits" | "origins"> {
  /** 0 lets the system choose. */
  readonly port: number;
  /** A model directory; undefined for the bundled model. */
  readonly model?: string;
  /** The directory of a smaller variant, which answers where a budget allows a worse answer; not on Cloudflare. */
  readonly smaller?: string;
  /** What computes. */
  readonly backend: Engine;
  /** Lets models be uploaded, where a platform takes them. */
  readonly uploadKey?: string;
  /** Threads that compute; by default as the model's size asks for. */
  readonly threads?: number;
  readonly logLevel: Level;
  /** Whether pictures and webhooks may be on private networks. */
  readonly allowPrivateUrls: boolean;
  /** Where records, blobs and queues lie; undefined for the user's data directory, or the platform's own. */
  readonly dataDirectory?: string;
  /** Sign webhooks and verify incoming ones that have no secret of their own. */
  readonly webhookSecrets: readonly string[];
  /** Where there is a POOL_URL. */
  readonly pool?: PoolSettings;
  readonly worker: WorkerSettings;
}

const ENGINES: readonly Engine[] = ["wasm", "webgpu", "reference", "ort"];

/** Limits of one key where there are keys and nothing else is said. */
const KEY_LIMITS = { requestsPerMinute: 600, concurrent: 32 };

/**
 * @param get gives a variable's value.
 * @throws {RangeError} naming the variable, what was expected and what was found; {RequestError} for a secret.
 */
export function readSettings(get: (name: string) => string | undefined): Settings {
  const list = (name: string) => (get(name) ?? "").split(",").map((it) => it.trim()).filter(Boolean);
  const whole = (name: string, low: number, high: number): number | undefined => {
    const value = get(name);
    if (!value) return undefined;
    if (/^\d{1,9}$/.test(value) && Number(value) >= low && Number(value) <= high) return Number(value);
    throw new RangeError(
      `expected ${name} to be a number from ${low} to ${high}, found ${JSON.stringify(value)}`,
    );
  };
  const price = (name: string): number | undefined => {
    const value = get(name);
    if (!value) return undefined;
    if (/^\d{1,9}(\.\d{1,12})?$/.test(value)) return Number(value);
    throw new RangeError(`expected ${name} to be a number of 0 or more, found ${JSON.stringify(value)}`);
  };
  const oneOf = <T extends string>(name: string, values: readonly T[], otherwise: T): T => {
    const value = get(name) || otherwise;
    const found = values.find((it) => it === value);
    if (found) return found;
    throw new RangeError(`expected ${name} to be ${values.join(" or ")}, found ${JSON.stringify(value)}`);
  };
  const poolUrl = get("POOL_URL");
  if (poolUrl && !/^(nats|tls|wss?|((openai|vllm)\+)?https?):\/\/./.test(poolUrl)) {
    throw new RangeError(
      "expected POOL_URL to begin with nats:, tls:, ws:, wss:, http: or https:, or openai+ or vllm+ before the last two, " +
        `found ${JSON.stringify(poolUrl)}`,
    );
  }
  const workerPage = get("WORKER_PAGE") || undefined;
  if (workerPage && !(/^wss?:\/\/./.test(workerPage) && /^(nats|tls|wss?):/.test(poolUrl ?? ""))) {
    throw new RangeError(
      `expected WORKER_PAGE to begin with ws: or wss: beside a POOL_URL of the same broker, found ${
        JSON.stringify(workerPage)
      } beside ${JSON.stringify(poolUrl ?? "")}`,
    );
  }
  const sent = oneOf("POOL_IMAGES", [
    "pixels",
    "features-f16",
    "features-int8",
    "projected-f16",
    "projected-int8",
  ], "pixels");
  const [stage, dtype] = sent.split("-");
  const poolImages = sent === "pixels" ? undefined : { stage, dtype } as PoolImages;
  const keys = list("API_KEYS");
  const webhookSecret = get("WEBHOOK_SECRET");
  const { requestsPerMinute, concurrent } = keys.length
    ? KEY_LIMITS
    : { requestsPerMinute: Infinity, concurrent: Infinity };
  return {
    port: whole("PORT", 0, 65535) ?? 8000,
    model: get("MODEL") || undefined,
    smaller: get("MODEL_SMALLER") || undefined,
    backend: oneOf("BACKEND", ENGINES, "wasm"),
    uploadKey: get("UPLOAD_KEY") || undefined,
    threads: whole("THREADS", 1, 64),
    ...keys.length && { apiKeys: keys },
    limits: {
      requestsPerMinute: whole("RATE_LIMIT", 1, 1e9) ?? requestsPerMinute,
      concurrent: whole("CONCURRENCY_LIMIT", 1, 1e9) ?? concurrent,
    },
    origins: list("CORS_ORIGINS"),
    logLevel: oneOf("LOG_LEVEL", LEVELS, "warn"),
    dataDirectory: get("DATA_DIR") || undefined,
    webhookSecrets: webhookSecret ? readSecrets(webhookSecret, "WEBHOOK_SECRET") : [],
    ...poolUrl && {
      pool: {
        url: poolUrl,
        nkey: get("POOL_NKEY") || undefined,
        ca: get("POOL_CA") || undefined,
        signingKey: get("POOL_SIGNING_KEY") || undefined,
        apiKey: get("POOL_API_KEY") || undefined,
        model: get("POOL_MODEL") || undefined,
        images: poolImages,
        workerPage,
        price: price("POOL_PRICE"),
      },
    },
    worker: {
      trustedKeys: get("POOL_TRUSTED_KEYS") || undefined,
      maxActive: whole("POOL_ACTIVE", 1, 256) ?? 8,
      maxWaiting: whole("POOL_WAITING", 0, 10_000) ?? 16,
    },
    allowPrivateUrls: /^(1|true)$/i.test(get("ALLOW_PRIVATE_URLS") ?? ""),
  };
}

/** Of variables that stand in an object, beside what else is bound to a Worker. @throws as {@link readSettings}. */
export function settingsOf(env: Readonly<Record<string, unknown>>): Settings {
  return readSettings((name) => {
    const value = env[name];
    return typeof value === "string" ? value : undefined;
  });
}
