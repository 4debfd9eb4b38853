import assert from "node:assert/strict";
import { join } from "@std/path";
import { parseEvents } from "../http/doubles.ts";
import { startDoor } from "./door.ts";
import { haveWrangler, startWorkerd } from "./workerd.ts";
import { until } from "../until.ts";

const ROOT = join(import.meta.dirname!, "../..");
const PICTURES = Object.fromEntries(
  [
    "models/tiny/pictures/five_shapes.png",
    "tests/fixtures/pictures/rgb.jpg",
    "tests/fixtures/pictures/rgba.webp",
  ]
    .map((it) => [it.split("/").at(-1)!, Deno.readFileSync(join(ROOT, it))]),
);
const PNG = PICTURES["five_shapes.png"].toBase64();

/** Numbers that the clock or chance makes. */
const OF_THE_MOMENT = ["timings", "route", "candidates", "created", "id", "instance"];

function form(fields: Record<string, string>, picture = "five_shapes.png"): RequestInit {
  const body = new FormData();
  body.append("image", new Blob([PICTURES[picture]]), picture);
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

function json(body: unknown, headers: Record<string, string> = {}): RequestInit {
  return {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  };
}

const chat = (more: Record<string, unknown>) =>
  json({
    model: "tiny",
    messages: [{
      role: "user",
      content: [
        { type: "text", text: "detect star ; heart" },
        { type: "image_url", image_url: { url: `data:image/png;base64,${PNG}` } },
      ],
    }],
    ...more,
  });
const sampled = { prompt: "caption en", temperature: "1", seed: "7", maxTokens: "20", ignoreEos: "true" };

/** What is asked of both doors. */
const REQUESTS: readonly [string, string, RequestInit?][] = [
  ["health", "/health"],
  ["page", "/"],
  ["API document", "/openapi.json"],
  ["models", "/v1/models"],
  ["no route", "/nothing"],
  ["wrong method", "/v1/generate"],
  ["preflight nobody asked for", "/v1/generate", { method: "OPTIONS" }],
  ["PNG", "/v1/generate", form({ prompt: "caption en" })],
  ["JPEG", "/v1/generate", form({ prompt: "caption en" }, "rgb.jpg")],
  ["WebP", "/v1/generate", form({ prompt: "caption en" }, "rgba.webp")],
  ["JSON", "/v1/generate", json({ image: PNG, prompt: "ocr", maxTokens: 5 })],
  ["sampled", "/v1/generate", form(sampled)],
  ["streamed", "/v1/generate", form({ ...sampled, stream: "true" })],
  ["resumed", "/v1/generate", {
    ...form({ ...sampled, stream: "true" }),
    headers: { "last-event-id": "11" },
  }],
  ["detect", "/v1/detect", form({ labels: "star ; heart" })],
  ["classify", "/v1/classify", json({ image: PNG, prompt: "caption en", labels: ["circle", "star"] })],
  ["embeddings", "/v1/embeddings/image", json({ image: PNG })],
  ["chat", "/v1/chat/completions", chat({ logprobs: true })],
  ["chat, streamed", "/v1/chat/completions", chat({ stream: true, stream_options: { include_usage: true } })],
  ["chat, refused", "/v1/chat/completions", chat({ n: 2 })],
  ["no picture", "/v1/generate", json({ prompt: "caption en" })],
  ["no JSON", "/v1/generate", { ...json({}), body: "{" }],
  ["out of range", "/v1/generate", form({ prompt: "", topP: "2" })],
  ["prompt too long", "/v1/generate", form({ prompt: "x ".repeat(5000), stream: "true" })],
  ["damaged picture", "/v1/generate", json({ image: PNG.slice(0, 400), prompt: "" })],
  ["no picture at all", "/v1/generate", json({ image: "aGVsbG8gd29ybGQ=", prompt: "" })],
  ["private URL", "/v1/generate", json({ image: "https://127.0.0.1/a.png", prompt: "" })],
  ["plain URL", "/v1/generate", json({ image: "http://example.com/a.png", prompt: "" })],
];

/** Status, kind and content of an answer, without what differs from one moment to the next. */
async function answerOf(url: string, init?: RequestInit) {
  const response = await fetch(url, init);
  const type = response.headers.get("content-type") ?? "";
  const text = await response.text();
  const steady = (_: string, value: unknown) =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).filter(([name]) => !OF_THE_MOMENT.includes(name)))
      : value;
  const content = type.startsWith("text/event-stream")
    ? parseEvents(text.replace("data: [DONE]", `data: "[DONE]"`)).map((it) => ({
      id: it.id,
      event: it.event,
      data: steady("", it.data),
    }))
    : type.includes("json")
    ? JSON.parse(text, steady)
    : text.replace(/(?<=nonce=")[^"]*/g, "");
  const { allow, "retry-after": retry } = Object.fromEntries(response.headers);
  return { status: response.status, type: type.toLowerCase(), allow, retry, content };
}

const wrangler = await haveWrangler();
Deno.test({
  name: `the Worker in workerd${wrangler ? "" : " (wrangler is not there and cannot be downloaded)"}`,
  ignore: !wrangler,
}, async (t) => {
  const [deno, worker] = await Promise.all([
    startDoor({}),
    startWorkerd(join(ROOT, "functions/wrangler.jsonc")),
  ]);
  try {
    for (const [name, path, init] of REQUESTS) {
      await t.step(`answers as the Deno door does: ${name}`, async () => {
        const expected = await answerOf(deno.url + path, init);
        assert.deepEqual(await answerOf(worker.url + path, init), expected);
        assert.notEqual(expected.content, "", "there is something to compare");
      });
    }

    const ask = (fields: Record<string, string>, more: RequestInit = {}) =>
      fetch(`${worker.url}/v1/generate`, { ...form({ ...sampled, ...fields }), ...more });
    const waiting = async () => {
      const metrics = await (await fetch(`${worker.url}/metrics`)).text();
      return Number(/^paligemma_queue_depth (\d+)$/m.exec(metrics)![1]);
    };

    await t.step("questions at once are answered in turn", async () => {
      const alone = await (await ask({ seed: "0" })).json();
      const answers = await Promise.all(Array.from({ length: 8 }, (_, i) => ask({ seed: `${i % 2}` })));
      assert.deepEqual(answers.map((it) => it.status), Array(8).fill(200));
      const texts = await Promise.all(answers.map(async (it) => (await it.json()).text));
      assert.deepEqual(texts.filter((_, i) => i % 2 === 0), Array(4).fill(alone.text));
      assert.equal(await waiting(), 0);
    });

    await t.step(
      "a client that goes away ends its answer, not that of another who asked the same",
      async () => {
        const both = async (seed: number) => {
          const long = { maxTokens: "600", seed: `${seed}`, stream: "true" };
          const [first, second] = [new AbortController(), new AbortController()];
          const leading = (await ask(long, { signal: first.signal })).body!.getReader();
          for (let i = 0; i < 4; i++) await leading.read();
          const following = await ask(long, { headers: { "last-event-id": "1" }, signal: second.signal });
          const reader = following.body!.getReader();
          await reader.read();
          // A stream whose end has come, unread, would not settle by itself.
          const end = (client: AbortController, it: typeof reader) => {
            client.abort();
            return it.cancel().catch(() => {});
          };
          return { reader, leave: () => end(first, leading), leaveToo: () => end(second, reader) };
        };
        const before = performance.now();
        await (await ask({ maxTokens: "600", seed: "4" })).text();
        const wholeMs = performance.now() - before;
        let asked = await both(5);
        await asked.leave();
        const read = async (it: typeof asked.reader) => {
          const { done, value } = await it.read();
          return done ? undefined : new TextDecoder().decode(value);
        };
        let text = "";
        for (let more = await read(asked.reader); more; more = await read(asked.reader)) text += more;
        assert.match(text, /^event: done$/m);
        let left = 0;
        // All of it may be computed by the time that the other one leaves too: then another is asked for.
        for (let seed = 6; seed < 20 && !left; seed++) {
          asked = await both(seed);
          await asked.leave();
          left = await read(asked.reader) ? await waiting() : 0;
          if (!left) await asked.leaveToo();
        }
        assert.equal(left, 1);
        await asked.leaveToo();
        const since = performance.now();
        while (await waiting() > 0) assert.ok(performance.now() - since < wholeMs / 2, "still computing");
        assert.equal((await ask({})).status, 200);
      },
    );
    await t.step("both doors count the same, what is answered as a whole too", async () => {
      const numbers = async (url: string) => {
        const text = await (await fetch(`${url}/metrics`)).text();
        const value = (line: string) =>
          Number(text.split("\n").find((it) => it.startsWith(`${line} `))?.split(" ")[1]);
        return { types: text.match(/^# TYPE .*$/gm)!, value };
      };
      const found = [];
      for (const { url } of [deno, worker]) {
        const before = await numbers(url);
        await (await fetch(`${url}/v1/embeddings/image`, json({ image: PNG }))).text();
        const labels = ["circle", "star"];
        await (await fetch(`${url}/v1/classify`, json({ image: PNG, prompt: "caption en", labels }))).text();
        const after = await numbers(url);
        const grown = [
          "paligemma_answer_seconds_count",
          'paligemma_tokens_total{kind="image"}',
          'paligemma_feature_cache_total{result="hit"}',
          'paligemma_feature_cache_total{result="miss"}',
        ].map((it) => after.value(it) - before.value(it));
        assert.deepEqual(grown, [2, 128, 1, 0]);
        assert.ok(after.value("paligemma_time_to_first_token_seconds_count") > 0);
        assert.ok(after.value("paligemma_inter_token_seconds_count") > 0);
        assert.ok(after.value('paligemma_routes_total{route="local"}') > 0);
        assert.equal(after.value('paligemma_backlog{kind="jobs"}'), 0);
        found.push(after.types);
      }
      assert.deepEqual(found[1], found[0]);
      for (const name of ["queue_depth gauge", "budget_total counter", "routes_total counter"]) {
        assert.ok(found[0].includes(`# TYPE paligemma_${name}`), name);
      }
    });

    await t.step("a job is worked off by the queue, and its letter tried", async () => {
      const items = [{ image: PNG, prompt: "ocr" }, { image: PNG, prompt: "caption en" }, {
        image: "aGk=",
        prompt: "",
      }];
      const secret = `whsec_${new Uint8Array(24).toBase64()}`;
      const webhook = { url: "https://nowhere.invalid/", secret };
      const made = await fetch(`${worker.url}/v1/jobs`, json({ items, webhook }));
      const { id } = await made.json();
      assert.equal(made.status, 202);
      // Ends when the job does.
      const events = await (await fetch(`${worker.url}/v1/jobs/${id}/events`)).text();
      assert.match(events, /"status":"done"/);
      const job = await (await fetch(`${worker.url}/v1/jobs/${id}`)).json();
      assert.deepEqual(job.items.map((it: { status: string }) => it.status), ["done", "done", "failed"]);
      const caption = await (await fetch(`${worker.url}/v1/generate`, form({ prompt: "caption en" }))).json();
      assert.equal(job.items[1].result.text, caption.text);
      await until(async () => {
        const { letters } = await (await fetch(`${worker.url}/v1/letters?status=pending`)).json();
        return letters[0]?.attempts.length > 0;
      });
      const backlog = async () => {
        const metrics = await (await fetch(`${worker.url}/metrics`)).text();
        return [...metrics.matchAll(/^paligemma_backlog\{kind="(\w+)"\} (\d+)$/gm)].map((it) =>
          it.slice(1).join()
        );
      };
      // The letter's receiver is not there: it waits for its next attempt.
      const told = ["jobs,0", "webhooks,1"].join();
      await until(async () => (await backlog()).join() === told);
    });
  } finally {
    await worker.stop();
    deno.kill("SIGTERM");
    await deno.status;
  }
});
