import assert from "node:assert/strict";
import { createApp } from "../../lib/http/app.ts";
import { hookRoutes } from "../../lib/http/hooks.ts";
import { jobRoutes } from "../../lib/http/jobs.ts";
import { JOB_OPERATIONS } from "../../lib/http/job_schemas.ts";
import { twoTokens } from "./doubles.ts";

// Nobody calls them here: what counts is which routes there are.
const idle = {} as never;
const app = createApp({
  pipeline: twoTokens,
  rooms: [
    jobRoutes({ jobs: idle, webhooks: idle, outbound: idle }),
    hookRoutes({ hooks: idle, outbound: idle }),
  ],
  operations: JOB_OPERATIONS,
});

Deno.test("the document names every route there is, and no other", async () => {
  const document = await (await app.request("/openapi.json")).json();
  assert.equal(document.openapi, "3.1.0");
  const told = Object.entries(document.paths as Record<string, object>).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`)
  );
  const served = app.routes.filter((it) => it.method !== "ALL").map((it) =>
    `${it.method} ${it.path.replace(/:(\w+)/g, "{$1}")}`
  );
  const pages = ["GET /", "GET /docs", "GET /openapi.json", "GET /samples", "GET /samples/{name}"];
  const ids = Object.values(document.paths as Record<string, Record<string, { operationId: string }>>)
    .flatMap((methods) => Object.values(methods).map((it) => it.operationId));
  assert.equal(new Set(ids).size, told.length, "every operation has its own id");
  assert.deepEqual(told.sort(), [...new Set(served)].filter((it) => !pages.includes(it)).sort());
});

Deno.test("bodies and answers are described field by field, with nothing left unsaid", async () => {
  const { paths } = await (await app.request("/openapi.json")).json();
  const { requestBody, responses } = paths["/v1/detect"].post;
  const { properties, required } = requestBody.content["application/json"].schema;
  assert.deepEqual(required, ["labels"]);
  assert.deepEqual([properties.temperature.minimum, properties.temperature.maximum], [0, 2]);
  assert.equal(properties.images.items.type, "string");
  assert.ok(requestBody.content["multipart/form-data"].schema.properties.image);
  assert.ok(responses["200"].content["application/json"].schema.properties.items);
  assert.ok(responses["200"].content["text/event-stream"]);
  assert.ok(responses["4XX"].content["application/problem+json"]);
  assert.ok(
    paths["/v1/chat/completions"].post.responses["4XX"].content["application/json"].schema.properties.error,
  );

  // A field without a type would be one that zod could not describe.
  const untyped: string[] = [];
  const walk = (schema: Record<string, unknown>, place: string) => {
    const known = ["type", "anyOf", "oneOf", "enum", "const", "prefixItems"].some((it) => it in schema);
    if (!known) untyped.push(place);
    for (const [name, field] of Object.entries(schema.properties ?? {})) walk(field, `${place}.${name}`);
    for (const field of (schema.anyOf ?? schema.oneOf ?? []) as Record<string, unknown>[]) walk(field, place);
    if (schema.type === "array") {
      walk(schema.items as Record<string, unknown> ?? { type: "any" }, `${place}[]`);
    }
  };
  for (const [path, methods] of Object.entries(paths as Record<string, Record<string, typeof paths>>)) {
    for (const { requestBody } of Object.values(methods)) {
      if (requestBody) walk(requestBody.content["application/json"].schema, path);
    }
  }
  assert.deepEqual(untyped, ["/v1/chat/completions.tools[]"]);
});

Deno.test("the page to read it on needs nothing from elsewhere", async () => {
  const response = await app.request("/docs");
  const html = await response.text();
  const nonce = /script-src 'nonce-([^']+)'/.exec(response.headers.get("content-security-policy")!)![1];
  assert.equal(html.match(/<(?:script|style)\b/g)!.length, html.split(`nonce="${nonce}"`).length - 1);
  const fetching = html.replace("xmlns='http://www.w3.org/2000/svg'", ""); // of the icon, which is in the page
  assert.doesNotMatch(fetching, /\{nonce\}|\{head\}| style="| on\w+="|https?:\/\//);
});
