/** Spans leave through Deno's own OpenTelemetry exporter, as children of the caller's trace, which webhooks carry on. */

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

Deno.test("a collector gets the span of an answer, and of one in a job, within the caller's trace, with counts and no content; the job's webhook names its trace", async () => {
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
  const letter = Promise.withResolvers<Headers>();
  const receiver = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    letter.resolve(request.headers);
    await request.body?.cancel();
    return new Response(null, { status: 204 });
  });
  const door = await startDoor({
    MODEL: CHECKPOINT,
    ALLOW_PRIVATE_URLS: "1",
    WEBHOOK_SECRET: `whsec_${new Uint8Array(24).toBase64()}`,
    OTEL_DENO: "true",
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://localhost:${collector.addr.port}`,
    OTEL_BSP_SCHEDULE_DELAY: "100",
  });
  const [trace, jobTrace] = ["4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"];
  const item = { image: PICTURE.toBase64(), prompt: "answer en secret?", maxTokens: 3, ignoreEos: true };
  const post = (path: string, body: unknown, trace: string) =>
    fetch(door.url + path, {
      method: "POST",
      headers: { "content-type": "application/json", traceparent: `00-${trace}-00f067aa0ba902b7-01` },
      body: JSON.stringify(body),
    });
  try {
    const response = await post("/v1/generate", item, trace);
    assert.equal(response.status, 200);
    await response.text();
    const webhook = { url: `http://127.0.0.1:${receiver.addr.port}/` };
    const { id } = await (await post("/v1/jobs", { items: [item], webhook }, jobTrace)).json();
    await (await fetch(`${door.url}/v1/jobs/${id}/events`)).text(); // until it has ended
    // By the span of its own request.
    assert.match((await letter.promise).get("traceparent")!, new RegExp(`^00-${jobTrace}-[0-9a-f]{16}-01$`));
    const numbers = await (await fetch(`${door.url}/metrics`)).text();
    for (
      const line of [
        'paligemma_tokens_total{kind="completion"} 6',
        "paligemma_time_to_first_token_seconds_count 2",
        "paligemma_inter_token_seconds_count 4",
        "paligemma_answer_seconds_count 2",
      ]
    ) assert.ok(numbers.split("\n").includes(line), `${line} in\n${numbers}`);
  } finally {
    door.kill("SIGTERM"); // what waits is sent
    await door.status;
    await Promise.all([collector.shutdown(), receiver.shutdown()]);
  }
  const answers = spans.filter((it) => it.name === "generate_content");
  assert.deepEqual(answers.map((it) => it.traceId), [trace, jobTrace]);
  const [answer, inJob] = answers;
  const parent = spans.find((it) => it.spanId === answer.parentSpanId);
  assert.equal(parent?.parentSpanId, "00f067aa0ba902b7", "the request's span lies between");
  assert.equal(inJob.parentSpanId, "00f067aa0ba902b7");
  for (const { attributes } of answers) {
    const values = Object.fromEntries(attributes.map((it) => [it.key, Object.values(it.value)[0]]));
    assert.equal(values["gen_ai.request.model"], "pg1");
    assert.equal(Number(values["gen_ai.usage.output_tokens"]), 3);
  }
  assert.doesNotMatch(bodies.join(), /secret/);
});
