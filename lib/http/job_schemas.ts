/** The bodies and answers of jobs, letters and hooks, as schemas; and their routes for the documentation. */

import * as z from "zod/mini";
import { MAX_ITEMS } from "../jobs/jobs.ts";
import type { Operation } from "./openapi/document.ts";
import { oneOf, optional, text } from "./schema.ts";

const MAX_URL = 2000;

/** Where the end of a job is announced. */
const WEBHOOK = z.strictObject({
  url: text("a URL").check(z.maxLength(MAX_URL, `at most ${MAX_URL} characters`)),
  secret: optional(
    text("a secret"),
    "whsec_ and base64 of 24 to 64 bytes; of several, with spaces between, all sign.",
  ),
}, { error: "url and secret" });

/** The body of `POST /v1/jobs`. */
export const JOB = z.strictObject({
  items: z.array(z.record(z.string(), z.unknown(), { error: "an object, a body of /v1/generate" }), {
    error: "an array of bodies of /v1/generate",
  }).check(z.minLength(1, "at least one item"), z.maxLength(MAX_ITEMS, `at most ${MAX_ITEMS} items`)),
  webhook: optional(WEBHOOK, "Who is told of the job's end, by Standard Webhooks."),
});

const header = () =>
  text("a header's name").check(z.regex(/^[a-z0-9-]{1,64}$/, "a header's name in lower case"));

const SIGNATURE = z.union([
  z.literal("standard"),
  z.strictObject({
    header: header(),
    prefix: optional(text(), "What stands before the signature, such as sha256=."),
    encoding: optional(oneOf("hex", "base64"), "hex by default."),
    id: optional(header(), "A header that tells one webhook from another."),
  }),
], { error: "standard, or header, prefix, encoding and id" });

/** The body of `PUT /v1/hooks/{name}`. */
export const HOOK = z.strictObject({
  item: z.record(z.string(), z.unknown(), {
    error: "an object: fields of /v1/generate, and where they come from",
  }).check(
    z.describe("/a/b is a JSON pointer into what came, text{/a/b} has one within it, all else is as it is."),
  ),
  signature: optional(
    SIGNATURE,
    "Standard Webhooks, the default, or where HMAC-SHA256 of the body stands.",
  ),
  secret: optional(
    text("a secret").check(z.minLength(8, "at least 8 characters")),
    "The server's own by default.",
  ),
  webhook: optional(WEBHOOK, "Who is told of the job's end."),
});

const time = z.string().check(z.describe("ISO 8601."));
const status = z.enum(["queued", "running", "done", "failed", "cancelled"]);

/** A job. */
export const JOB_VIEW = z.strictObject({
  id: z.string(),
  status,
  items: z.array(z.strictObject({
    index: z.int(),
    status,
    result: z.optional(z.unknown()).check(z.describe("What /v1/generate answers.") as never),
    error: z.optional(z.strictObject({ code: z.string(), message: z.string() })),
    attempts: z.int(),
  })),
  createdAt: time,
  finishedAt: z.optional(time),
});

/** A webhook that was or is to be sent. */
export const LETTER = z.strictObject({
  id: z.string(),
  job: z.string(),
  url: z.string(),
  type: z.string(),
  status: z.enum(["pending", "delivered", "dead"]),
  reason: z.optional(z.string()),
  createdAt: z.number(),
  attempts: z.array(
    z.strictObject({ at: z.number(), status: z.optional(z.int()), error: z.optional(z.string()) }),
  ),
});

/** A hook, without its secrets. */
export const HOOK_VIEW = z.strictObject({
  name: z.string(),
  signature: SIGNATURE,
  item: z.record(z.string(), z.unknown()),
  webhook: z.optional(z.strictObject({ url: z.string() })),
});

/** The routes. */
export const JOB_OPERATIONS: readonly Operation[] = [
  {
    method: "post",
    path: "/v1/jobs",
    summary: "Have up to a hundred questions answered; with an Idempotency-Key, once",
    body: JOB,
    answer: JOB_VIEW,
    status: 202,
  },
  { method: "get", path: "/v1/jobs/{id}", summary: "A job and its results", answer: JOB_VIEW },
  { method: "delete", path: "/v1/jobs/{id}", summary: "Cancel what is not finished", answer: JOB_VIEW },
  {
    method: "get",
    path: "/v1/jobs/{id}/events",
    summary: "What becomes of a job, as it happens; goes on after Last-Event-ID",
    answer: "text/event-stream",
  },
  {
    method: "get",
    path: "/v1/letters",
    summary: "Webhooks sent or to be sent; ?status=dead lists those given up",
    answer: z.strictObject({ letters: z.array(LETTER) }),
  },
  {
    method: "post",
    path: "/v1/letters/{id}/send",
    summary: "Send a webhook again",
    answer: LETTER,
    status: 202,
  },
  {
    method: "get",
    path: "/v1/hooks",
    summary: "Incoming webhooks that are taken",
    answer: z.strictObject({ hooks: z.array(HOOK_VIEW) }),
  },
  { method: "get", path: "/v1/hooks/{name}", summary: "One of them", answer: HOOK_VIEW },
  {
    method: "put",
    path: "/v1/hooks/{name}",
    summary: "Take incoming webhooks of a name",
    body: HOOK,
    answer: HOOK_VIEW,
  },
  {
    method: "delete",
    path: "/v1/hooks/{name}",
    summary: "Take them no more",
    answer: "text/plain",
    status: 204,
  },
  {
    method: "post",
    path: "/v1/hooks/{name}",
    summary: "A webhook comes in and becomes a job; its signature lets it in",
    answer: JOB_VIEW,
    status: 202,
    open: true,
  },
];
