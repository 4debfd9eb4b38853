import assert from "node:assert/strict";
import { parseEvents } from "../http/doubles.ts";
import { CHECKPOINT, startDoor } from "./door.ts";

const PICTURE = await Deno.readFile(new URL("../fixtures/pictures/rgb.jpg", import.meta.url));

function form(fields: Record<string, string>): RequestInit {
  const body = new FormData();
  body.append("image", new Blob([PICTURE]), "rgb.jpg");
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

Deno.test("the server answers over HTTP, streamed and whole alike, and a signal ends it cleanly", async () => {
  const door = await startDoor({ MODEL: CHECKPOINT });
  try {
    assert.match(door.output().stdout, /^PaliGemma Edge answers at http.*\n {2}curl -N .*-F stream=true\n$/);
    const health = await fetch(`${door.url}/health`);
    assert.deepEqual([health.status, (await health.json()).model.name], [200, "pg1"]);

    const ask = { prompt: "caption en", maxTokens: "12", ignoreEos: "true" };
    const streamed = await fetch(`${door.url}/v1/generate`, form({ ...ask, stream: "true" }));
    assert.match(streamed.headers.get("content-type")!, /^text\/event-stream/);
    const events = parseEvents(await streamed.text());
    assert.deepEqual(events.map((it) => it.id), events.map((_, i) => String(i)));
    const tokens = events.filter((it) => it.event === "token").map((it) => it.data as { id: number });
    assert.deepEqual(events.slice(-2).map((it) => it.event), ["usage", "done"]);
    const whole = await (await fetch(`${door.url}/v1/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        image: PICTURE.toBase64(),
        prompt: ask.prompt,
        maxTokens: 12,
        ignoreEos: true,
      }),
    })).json();
    assert.equal(whole.tokenIds.length, 12);
    assert.deepEqual(whole.tokenIds, tokens.map((it) => it.id));
    assert.equal(whole.text, (events.at(-1)!.data as { text: string }).text);
    assert.deepEqual([whole.finishReason, whole.imageTokens], ["length", 16]);

    // What the stages behind the body refuse comes out with its code as well.
    const cases: [Record<string, string>, number, string][] = [
      [{ prompt: "x ".repeat(5000) }, 400, "prompt_too_long"],
      [{ prompt: "", temperature: "3" }, 400, "parameter_invalid"],
      [{ prompt: "", maxTokens: "0" }, 400, "parameter_invalid"],
      [{ prompt: "", topP: "0" }, 400, "parameter_invalid"],
      [{ prompt: "", seed: "-1" }, 400, "parameter_invalid"],
    ];
    for (const [fields, status, code] of cases) {
      for (const stream of ["false", "true"]) {
        const response = await fetch(`${door.url}/v1/generate`, form({ ...fields, stream }));
        assert.deepEqual([response.status, (await response.json()).code], [status, code]);
      }
    }
    const text = new FormData();
    text.append("image", new Blob(["not a picture"]), "a.txt");
    text.append("prompt", "");
    const refused = await fetch(`${door.url}/v1/generate`, { method: "POST", body: text });
    assert.deepEqual([refused.status, (await refused.json()).code], [415, "image_unsupported"]);

    // A stream under way is ended properly, not cut.
    const long = { prompt: "", maxTokens: "100000", ignoreEos: "true", stream: "true" };
    const reader = (await fetch(`${door.url}/v1/generate`, form(long))).body!.getReader();
    let received = new TextDecoder().decode((await reader.read()).value);
    door.kill("SIGTERM");
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      received += new TextDecoder().decode(part.value);
    }
    const last = parseEvents(received).at(-1)!;
    assert.equal(last.event, "done");
    assert.equal((last.data as { finishReason: string }).finishReason, "cancelled");
    assert.equal((await door.status).code, 0);
    assert.match(door.output().stdout, /\nStopped\.\n$/);
    assert.equal(door.output().stderr, "");
  } finally {
    if (!/Stopped/.test(door.output().stdout)) door.kill("SIGTERM");
    await door.status;
  }
});

Deno.test("THREADS gives the same answer from several threads; a number that is none is refused by name", async () => {
  const answers = [];
  for (const THREADS of ["1", "2"]) {
    const door = await startDoor({ THREADS });
    try {
      const answer = await fetch(`${door.url}/v1/generate`, form({ prompt: "caption en", maxTokens: "12" }));
      const { tokenIds, logprobs } = await answer.json();
      answers.push({ tokenIds, logprobs });
    } finally {
      door.kill("SIGTERM");
      await door.status;
    }
  }
  assert.ok(answers[0].tokenIds.length > 0);
  assert.deepEqual(answers[1], answers[0]);
  const refused = await startDoor({ THREADS: "0" });
  assert.equal((await refused.status).code, 1);
  assert.match(refused.output().stderr, /THREADS to be a number from 1 to 64, found "0"/);
});

Deno.test("a model directory that is none, a port in use and a port that is none end in one line and code 1", async () => {
  const taken = Deno.listen({ port: 0 });
  const port = String((taken.addr as Deno.NetAddr).port);
  const cases: [Record<string, string>, RegExp][] = [
    [{ MODEL: "/nowhere" }, /^Cannot load the model in \/nowhere: expected config\.json, found nothing\n$/],
    [{ MODEL: CHECKPOINT, PORT: port }, new RegExp(`^Cannot serve on port ${port}: .*\n$`)],
    // Told from the directory's files, before an engine is fetched.
    [
      { MODEL: CHECKPOINT, BACKEND: "ort" },
      /^Cannot load the model in .*pg1: expected onnx\/vision_encoder.*\n$/,
    ],
    [
      { MODEL: CHECKPOINT, PORT: "http" },
      /^Cannot serve: expected PORT to be a number from 0 to 65535, found "http"\n$/,
    ],
  ];
  for (const [env, message] of cases) {
    const door = await startDoor(env);
    assert.equal((await door.status).code, 1);
    assert.match(door.output().stderr, message);
    assert.equal(door.output().stdout, "");
  }
  taken.close();
});
