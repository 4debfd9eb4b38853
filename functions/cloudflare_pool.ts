/**
 * How the Worker joins a pool. Workers that have an address are asked by `fetch`. The connection to a broker is kept by a
 * Durable Object, since what one request opens no other may use.
 */

import type { Engine } from "../lib/engine.ts";
import { createLog } from "../lib/http/guard/log.ts";
import { behindGateway, Gateway } from "../lib/pool/gateway.ts";
import { HttpPool } from "../lib/pool/http.ts";
import type { Pool } from "../lib/pool/pool.ts";
import { createSign, type Sign } from "../lib/pool/signature.ts";
import type { ModelShape } from "../lib/pool/work.ts";
import type { ObjectNamespace } from "../lib/store/cloudflare.ts";
import { openAiPool } from "./openai_pool.ts";
import { type PoolSettings, type Settings, settingsOf } from "./settings.ts";

/** What a Worker cannot do without, of what the environment says of a pool. */
function checked(settings: Pick<Settings, "pool" | "allowPrivateUrls">) {
  const { pool } = settings;
  if (!pool) throw new RangeError("expected POOL_URL");
  const broker = /^wss?:/.test(checkedAddress(pool, settings));
  return { broker, url: pool.url, nkey: pool.nkey?.trim(), sign: signer(pool) };
}

/** The way there, without what says whose API it is. */
function checkedAddress(pool: PoolSettings, { allowPrivateUrls }: Pick<Settings, "allowPrivateUrls">) {
  const { protocol, hostname } = new URL(pool.url.replace(/^\w+\+/, ""));
  const open = allowPrivateUrls || /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);
  if (!["https:", "wss:", ...open ? ["http:", "ws:"] : []].includes(protocol)) {
    throw new RangeError(
      "expected POOL_URL of a Worker to begin with https: (workers) or wss: (a broker), to loopback or with " +
        `ALLOW_PRIVATE_URLS=1 also with http: or ws:, found ${JSON.stringify(pool.url)}`,
    );
  }
  if (pool.ca !== undefined) {
    throw new RangeError("expected no POOL_CA in a Worker, which trusts well-known ones");
  }
  return protocol;
}

/** @throws {RangeError} where there is no key, or none in JSON; it is read later. */
function signer({ signingKey }: { readonly signingKey?: string }): Promise<Sign> {
  try {
    const sign = createSign(JSON.parse(signingKey ?? ""));
    sign.catch(() => {}); // said to whoever signs
    return sign;
  } catch (cause) {
    throw new RangeError("expected POOL_SIGNING_KEY beside POOL_URL, a JWK, as pool:keys writes it", {
      cause,
    });
  }
}

/**
 * The Worker's pool, for its pipeline; undefined where no POOL_URL is set.
 *
 * @param gateways the namespace of {@link PoolObject}s.
 * @throws {RangeError} for settings that a Worker cannot follow.
 */
export function openPool(
  settings: Pick<Settings, "pool" | "allowPrivateUrls">,
  gateways: ObjectNamespace,
): ((model: ModelShape, engine: Engine) => Pool) | undefined {
  if (!settings.pool) return undefined;
  const openAi = openAiPool(settings.pool);
  if (openAi) {
    checkedAddress(settings.pool, settings);
    return openAi;
  }
  const { broker, url, sign } = checked(settings);
  return (model) => {
    if (!broker) return new HttpPool(url, { model, sign: async (...args) => (await sign)(...args) });
    return behindGateway(
      model,
      (to, init) => gateways.get(gateways.idFromName(model.revision)).fetch(to, init),
    );
  };
}

/** The Durable Object that keeps the connection to the broker, one for each model. While nobody asks it may be gone. */
export class PoolObject {
  readonly #gateway: Gateway;

  constructor(_state: unknown, env: Readonly<Record<string, unknown>>) {
    const settings = settingsOf(env);
    // deno-lint-ignore no-console -- where a Worker's log goes
    const log = createLog(settings.logLevel, (line) => console.log(line));
    this.#gateway = new Gateway({
      ...checked(settings),
      onError: (error) => log("error", "failure", { error }),
    });
  }

  fetch(request: Request): Promise<Response> {
    return this.#gateway.fetch(request);
  }
}
