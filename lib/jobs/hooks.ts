/**
 * Incoming webhooks: what a chat tool, a bucket or a form sends becomes a job of one item, by a mapping that is data.
 */

import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";
import { type Records, type Versioned } from "../store/store.ts";
import { isFor, type Owned, type WebhookTarget } from "./job.ts";
import type { JobView } from "./job_store.ts";
import type { Jobs } from "./jobs.ts";
import { readSecrets, type SignatureScheme, verify } from "./signature.ts";

/** What becomes of the webhooks of one name. The jobs that come of them are its owner's. */
export interface Hook extends Owned {
  readonly name: string;
  readonly signature: SignatureScheme;
  /** Without it the server's own. Of `whsec_` ones several, with spaces between, for the standard scheme. */
  readonly secret?: string;
  /**
   * The item's fields. Text that begins with `/` is a JSON pointer (RFC 6901) into what came; other text stands as it is,
   * but for pointers in braces (`https://cdn.example{/object/key}`); everything else stands as it is.
   */
  readonly item: Readonly<Record<string, unknown>>;
  /** Where the job's end is announced. */
  readonly webhook?: WebhookTarget;
}

/** A hook as callers see it. */
export type HookView = Omit<Hook, "owner" | "secret" | "webhook"> & {
  readonly webhook?: { readonly url: string };
};

/** One webhook that came. */
export interface Incoming {
  readonly headers: Headers;
  /** As it was signed. */
  readonly body: string;
  readonly traceparent?: string;
}

/** Checks that a finished item is one that can be answered; throws what is wrong with it. */
export type CheckItem = (item: Readonly<Record<string, unknown>>) => void;

const hookKey = (name: string) => `hooks/${name}`;

/** The hooks of one store. To whoever may not know of a hook, there is none; but names are taken once for all. */
export class Hooks {
  /** @param secrets the server's own. */
  constructor(
    private readonly records: Records,
    private readonly jobs: Jobs,
    private readonly secrets: readonly string[] = [],
  ) {}

  /**
   * Writes a hook, in place of one of the same name.
   *
   * @returns undefined when the name is another owner's.
   * @throws {RequestError} `parameter_invalid` where nothing would tell its sender from others.
   */
  async set(hook: Hook): Promise<HookView | undefined> {
    const { name, owner, secret, signature, webhook } = hook;
    if (secret === undefined && !this.secrets.length) {
      throw new RequestError(
        "parameter_invalid",
        "Cannot read secret: expected one (this server has none of its own), found none",
      );
    }
    if (secret !== undefined && signature === "standard") readSecrets(secret);
    if (webhook?.secret !== undefined) readSecrets(webhook.secret, "webhook.secret");
    while (true) {
      const former = await this.#find(name);
      if (former && !isFor(owner, former.value)) return undefined;
      if (await this.records.set(hookKey(name), hook, former?.version) !== undefined) return shown(hook);
    }
  }

  async get(name: string, caller?: string): Promise<HookView | undefined> {
    const hook = (await this.#find(name))?.value;
    return hook && isFor(caller, hook) ? shown(hook) : undefined;
  }

  async list(caller?: string): Promise<HookView[]> {
    const hooks: HookView[] = [];
    for await (const key of this.records.keys("hooks/")) {
      const hook = await this.get(key.slice("hooks/".length), caller);
      if (hook) hooks.push(hook);
    }
    return hooks;
  }

  /** Whether there was one. One that cannot be read is nobody's. */
  async delete(name: string, caller?: string): Promise<boolean> {
    const found = await this.#find(name).catch((error) => {
      if (error instanceof RequestError && error.code === "record_corrupt") return { value: {} };
      throw error;
    });
    if (!found || !isFor(caller, found.value)) return false;
    await this.records.delete(hookKey(name));
    return true;
  }

  /**
   * Takes a webhook: checks who sent it, makes its item, accepts the job. The same webhook twice is one job, where its
   * sender tells that it is the same.
   *
   * @returns undefined when there is no such hook.
   * @throws {RequestError} `signature_invalid`, `body_invalid` for what is no JSON and no form, `parameter_invalid` where
   * a pointer leads nowhere, or what `check` throws.
   */
  async take(
    name: string,
    { headers, body, traceparent }: Incoming,
    check: CheckItem,
  ): Promise<JobView | undefined> {
    const hook = (await this.#find(name))?.value;
    if (!hook) return undefined;
    const { owner, secret, signature } = hook;
    const own = secret === undefined || signature !== "standard" ? secret && [secret] : readSecrets(secret);
    const id = await verify(signature, own || this.secrets, headers, body);
    const item = mapped(hook.item, parse(headers, body));
    check(item);
    return await this.jobs.create({
      owner,
      items: [item],
      webhook: hook.webhook,
      traceparent,
      ...id !== undefined && {
        idempotency: { key: `hook ${name} ${id}`, digest: (await sha256(body)).toHex() },
      },
    });
  }

  async #find(name: string): Promise<Versioned<Hook> | undefined> {
    return await this.records.get(hookKey(name)) as Versioned<Hook> | undefined;
  }
}

function shown({ name, signature, item, webhook }: Hook): HookView {
  return { name, signature, item, ...webhook && { webhook: { url: webhook.url } } };
}

/** JSON, or the fields of a form as an object of texts. */
function parse(headers: Headers, body: string): unknown {
  const type = headers.get("content-type")?.split(";", 1)[0].trim().toLowerCase();
  if (type === "application/x-www-form-urlencoded") return Object.fromEntries(new URLSearchParams(body));
  try {
    return JSON.parse(body);
  } catch {
    throw new RequestError("body_invalid", "Cannot read the webhook: expected JSON or a form, found neither");
  }
}

/** The item that a template makes of a document. */
export function mapped(
  template: Readonly<Record<string, unknown>>,
  document: unknown,
): Record<string, unknown> {
  const field = (value: unknown): unknown => {
    if (typeof value !== "string") return value;
    if (value.startsWith("/")) return follow(document, value);
    return value.replaceAll(/\{(\/[^{}]*)\}/g, (_, pointer) => {
      const found = follow(document, pointer);
      if (typeof found === "string" || typeof found === "number") return String(found);
      throw nowhere(pointer, "text or a number");
    });
  };
  return Object.fromEntries(Object.entries(template).map(([name, value]) => [name, field(value)]));
}

/** What a JSON pointer (RFC 6901) leads to. */
function follow(document: unknown, pointer: string): unknown {
  let at = document;
  for (const part of pointer.slice(1).split("/")) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    const known = typeof at === "object" && at !== null && Object.hasOwn(at, key);
    if (!known || Array.isArray(at) && !/^(0|[1-9]\d*)$/.test(key)) throw nowhere(pointer, "a value");
    at = (at as Record<string, unknown>)[key];
  }
  return at;
}

function nowhere(pointer: string, expected: string): RequestError {
  return new RequestError(
    "parameter_invalid",
    `Cannot map the webhook: expected ${expected} at ${pointer}, found none`,
  );
}
