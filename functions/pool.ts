/** How a door on a machine with files joins a pool: the connection to the broker, and the keys. */

import { type NatsConnection, wsconnect } from "@nats-io/nats-core";
import { connect } from "@nats-io/transport-node";
import type { JWK } from "jose";
import type { Engine } from "../lib/engine.ts";
import { RequestError } from "../lib/mod.ts";
import type { INBOX } from "../lib/pool/exchange.ts";
import { HttpPool } from "../lib/pool/http.ts";
import { connectionOptions, NatsPool } from "../lib/pool/nats.ts";
import { type Pool, PoolError, type SubmitOptions, type Work } from "../lib/pool/pool.ts";
import { createSign, type TrustedKey } from "../lib/pool/signature.ts";
import type { ModelShape } from "../lib/pool/work.ts";
import { openAiPool } from "./openai_pool.ts";
import type { PoolSettings, WorkerSettings } from "./settings.ts";

/** What a setting says: itself, or the file it names. */
async function contents(name: string, value: string): Promise<string> {
  if (/^\s*[[{]|^SU[A-Z2-7]{56}$/.test(value)) return value;
  try {
    return (await Deno.readTextFile(value)).trim();
  } catch (cause) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot read ${name}, ${value}: ${(cause as Error).message}`,
      { cause },
    );
  }
}

async function json<T>(name: string, value: string): Promise<T> {
  const text = await contents(name, value);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new RequestError("parameter_invalid", `Cannot read ${name}: expected JSON, found something else`, {
      cause,
    });
  }
}

/** Connects, and again whenever the connection breaks; waits where nobody is there yet. */
export async function connectBroker(
  { url, nkey, ca }: PoolSettings,
  role: keyof typeof INBOX,
): Promise<NatsConnection> {
  if (/^(\w+\+)?https?:/.test(url)) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot join a pool: expected POOL_URL of a broker, such as nats://localhost:4222, found ${url}`,
    );
  }
  const seed = nkey === undefined ? undefined : await contents("POOL_NKEY", nkey);
  return await (/^wss?:/.test(url) ? wsconnect : connect)({
    ...connectionOptions(url, role, seed),
    tls: url.startsWith("tls:") ? { ...ca && { caFile: ca } } : undefined,
  });
}

/**
 * The pool of a server, for its pipeline. While a broker is not reached there is nobody in it.
 *
 * @throws {RequestError} `parameter_invalid` when there is no key to sign with.
 */
export async function openPool(
  settings: PoolSettings,
  onError: (error: unknown) => void,
): Promise<(model: ModelShape, engine: Engine) => Pool> {
  const { url, ca } = settings;
  const reach = /^(\w+\+)?https?:/.test(url) ? await reaching(ca) : fetch;
  const openAi = openAiPool(settings, reach);
  if (openAi) return openAi;
  const sign = await createSign(await signingKey(settings));
  if (/^https?:/.test(url)) {
    return (model) => new HttpPool(url, { model, sign, fetch: reach });
  }
  const connecting = connectBroker(settings, "server");
  return (model) => {
    let pool: NatsPool | undefined;
    connecting.then((it) => pool = new NatsPool(it, { model, sign, onError }), onError);
    return {
      submit(work: Work, options?: SubmitOptions) {
        if (!pool) throw new PoolError("nobody", "Cannot reach the pool: there is no connection yet");
        return pool.submit(work, options);
      },
      present: () => pool ? pool.present() : { workers: [] },
    };
  };
}

async function signingKey({ signingKey: key }: PoolSettings): Promise<JWK> {
  if (key !== undefined) return await json("POOL_SIGNING_KEY", key);
  throw new RequestError(
    "parameter_invalid",
    "Cannot join a pool: expected POOL_SIGNING_KEY beside POOL_URL. deno task pool:keys makes one",
  );
}

/** By what workers know this server's work. @throws {RequestError} `parameter_invalid` when there is no key. */
export async function publicKey(settings: PoolSettings): Promise<TrustedKey> {
  const { kty, crv, x, kid } = await signingKey(settings);
  return { kty, crv, x, kid: kid!, ...settings.images && { features: true } };
}

/** `fetch` that trusts the certificates in a file as well. */
async function reaching(ca: string | undefined): Promise<typeof fetch> {
  if (ca === undefined) return fetch;
  const client = Deno.createHttpClient({ caCerts: [await contents("POOL_CA", ca)] });
  return (to, init) => {
    const asked = { ...init, client };
    return fetch(to as string, asked);
  };
}

/** The public keys whose work a worker takes. @throws {RequestError} `parameter_invalid` when there are none. */
export async function trustedKeys({ trustedKeys: keys }: WorkerSettings): Promise<readonly TrustedKey[]> {
  if (keys === undefined) {
    throw new RequestError(
      "parameter_invalid",
      "Cannot serve a pool: expected POOL_TRUSTED_KEYS, the public keys of its servers. deno task pool:keys makes some",
    );
  }
  return (await json<{ keys: TrustedKey[] }>("POOL_TRUSTED_KEYS", keys)).keys;
}
