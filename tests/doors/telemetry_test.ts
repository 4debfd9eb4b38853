/** Spans leave through Deno's own OpenTelemetry exporter, as children of the caller's trace. */

import assert from "node:assert/strict";
import { CHECKPOINT, startDoor } from "./door.ts";

const PICTURE = await Deno.readFile(new URL("../fixtures/scene.png", import.meta.url));

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly attributes: { readonly key: string; readonly value: Record<string, unknown> }[];
}

Deno.test("a collector gets the answer's span within the caller's trace, with counts and no content", async () => {
  const spans: Span[] = [];
  const bodies: string[] = [];
  const collector = Deno.serve({ port: 0, onListen() {} }, async (request) => {
    const text = await request.text();
    bodies.push(text);
    if (new URL(request.url).pathname === "/v1/traces") {
      const { resourceSpans } = JSON.parse(text);
      for (const { scopeSpans } of resourceSpans) {
        for (const scope of scopeSpans) spans.push(...scope.spans);
      }
    }
    return Response.json({});
  });
  const door = await startDoor({
    MODEL: CHECKPOINT,
    OTEL_DENO: "true",
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://localhost:${collector.addr.port}`,
    OTEL_BSP_SCHEDULE_DELAY: "100",
  });
  const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  try {
    const response = await fetch(`${door.url}/v1/generate`, {
      method: "POST",
      headers: { "content-type": "application/json", traceparent: `00-${trace}-00f067aa0ba902b7-01` },
      body: JSON.stringify({
        image: PICTURE.toBase64(),
        prompt: "answer en secret?",
        maxTokens: 3,
        ignoreEos: true,
      }),
    });
    assert.equal(response.status, 200);
    await response.text();
  } finally {
    door.kill("SIGTERM"); // what waits is sent
    await door.status;
    await collector.shutdown();
  }
  const answer = spans.find((it) => it.name === "generate_content");
  assert.ok(answer, spans.map((it) => it.name).join());
  assert.equal(answer.traceId, trace);
  const parent = spans.find((it) => it.spanId === answer.parentSpanId);
  assert.equal(parent?.parentSpanId, "00f067aa0ba902b7", "the request's span lies between");
  const attributes = Object.fromEntries(answer.attributes.map((it) => [it.key, Object.values(it.value)[0]]));
  assert.equal(attributes["gen_ai.request.model"], "pg1");
  assert.equal(Number(attributes["gen_ai.usage.output_tokens"]), 3);
  assert.doesNotMatch(bodies.join(), /secret/);
});
