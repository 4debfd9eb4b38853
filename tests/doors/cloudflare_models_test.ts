import assert from "node:assert/strict";
import { join } from "@std/path";
import { loadModel } from "../../functions/model.ts";
import { synth } from "../../models/synth.ts";
import { haveWrangler, startWorkerd } from "./workerd.ts";
import { until } from "../until.ts";

const ROOT = join(import.meta.dirname!, "../..");
const PICTURE = Deno.readFileSync(join(ROOT, "models/tiny/pictures/five_shapes.png"));
const OTHER = Deno.readFileSync(join(ROOT, "models/tiny/pictures/park.png"));
const KEY = "lets-models-in";
const NAME = "narrow";

const body = (fields: object) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ image: PICTURE.toBase64(), ...fields }),
});

const wrangler = await haveWrangler();
Deno.test({
  name: `a model in R2${wrangler ? "" : " (wrangler is not there and cannot be downloaded)"}`,
  ignore: !wrangler,
}, async (t) => {
  const directory = await Deno.makeTempDir({ prefix: "model" });
  // Of true width, so that all of it has no room in the isolate, but of few layers.
  await synth("paligemma-3b-224", directory, {
    decoder: "int4",
    layers: { vision: 2, decoder: 1 },
    vocabulary: 2048,
  });
  await Deno.writeTextFile(join(directory, "notes.txt"), "not of the model");
  const worker = await startWorkerd(join(ROOT, "functions/wrangler.jsonc"), { MODEL: NAME, UPLOAD_KEY: KEY });
  const ask = async (path: string, init?: RequestInit) => {
    const response = await fetch(worker.url + path, init);
    return { status: response.status, headers: response.headers, content: await response.json() };
  };
  const start = (key: string) =>
    new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--no-check",
        "--quiet",
        "functions/upload.ts",
        directory,
        NAME,
        "--to",
        worker.url,
      ],
      env: { UPLOAD_KEY: key },
      cwd: ROOT,
      stderr: "piped",
    }).spawn();
  const upload = async (key = KEY) => {
    const { code, stderr } = await start(key).output();
    return { code, said: new TextDecoder().decode(stderr) };
  };
  const stored = (file: string) =>
    ask(`/uploads/${NAME}/${file}`, { headers: { authorization: `Bearer ${KEY}` } });
  const note = join(directory, ".model.safetensors.upload");

  try {
    await t.step("before there is one, requests are told which is missing", async () => {
      const { status, content } = await ask("/v1/embeddings/image", body({}));
      assert.deepEqual([status, content.code], [500, "model_invalid"]);
      assert.match(content.detail, /narrow in R2.*config\.json/);
    });

    await t.step("nobody puts one there without the key", async () => {
      const { code, said } = await upload("another");
      assert.equal(code, 1);
      assert.match(said, /401 .*API key/);
      assert.equal((await ask(`/uploads/${NAME}/config.json`, { method: "DELETE" })).status, 401);
    });

    await t.step(
      "an upload that is killed goes on with what is missing, and was no model before",
      async () => {
        const killed = start(KEY);
        const parts = () => {
          try {
            return JSON.parse(Deno.readTextFileSync(note)).parts.length;
          } catch {
            return 0;
          }
        };
        await until(() => parts() >= 2, 20_000);
        killed.kill("SIGKILL");
        await killed.output();
        assert.equal((await stored("config.json")).status, 404);
        assert.equal((await stored("model.safetensors")).status, 404);
        const { code, said } = await upload();
        assert.equal(code, 0, said);
        assert.match(said, /^model\.safetensors: \d+ MB, \d+(\.\d)? MB there already$/m);
        assert.match(said, new RegExp(`^next: MODEL=${NAME} `, "m"));
        const bytes = await Deno.readFile(join(directory, "model.safetensors"));
        const sha256 = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
        assert.deepEqual((await stored("model.safetensors")).content, { sizeBytes: bytes.length, sha256 });
        const left = [...Deno.readDirSync(directory)].map((it) => it.name).sort();
        assert.deepEqual(left.filter((it) => it.startsWith(".")), []);
        assert.equal((await stored("notes.txt")).status, 404);
      },
    );

    await t.step("what R2 forgot is begun anew; what is there is not sent again", async () => {
      const path = join(directory, "config.json");
      const config = await Deno.readTextFile(path) + "\n";
      await Deno.writeTextFile(path, config);
      const sha256 = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(config)))
        .toHex();
      const forgotten = { url: `${worker.url}/${NAME}/config.json`, sha256, upload: "gone", parts: [] };
      await Deno.writeTextFile(join(directory, ".config.json.upload"), JSON.stringify(forgotten));
      const { code, said } = await upload();
      assert.equal(code, 0, said);
      assert.match(said, /^model\.safetensors: .*, there already$/m);
      assert.equal((await stored("config.json")).content.sha256, sha256);
    });

    await t.step("its pictures become the numbers that they become in Deno, layer by layer", async () => {
      const { status, content } = await ask("/v1/embeddings/image", body({}));
      assert.equal(status, 200, JSON.stringify(content));
      const { values, shape } = await (await loadModel(directory)).embed({ images: [PICTURE] });
      assert.deepEqual(content.shape, shape);
      assert.equal(content.data, new Uint8Array(Float16Array.from(values).buffer).toBase64());
      assert.equal(content.model, NAME);
    });

    await t.step("what needs its decoder is refused, naming the pool that it would take", async () => {
      const asked = { prompt: "caption en" };
      const requests: [string, object][] = [
        ["/v1/generate", asked],
        ["/v1/generate", { ...asked, stream: true }],
        ["/v1/caption", {}],
        ["/v1/classify", { labels: ["a", "b"] }],
      ];
      for (const [path, fields] of requests) {
        const { status, headers, content } = await ask(path, body(fields));
        assert.deepEqual([status, content.code], [503, "pool_needed"], path);
        assert.match(content.detail, path === "/v1/classify" ? /no pool tells/ : /POOL_URL/);
        assert.equal(headers.get("retry-after"), null, "it does not pass by itself");
      }
    });
    await t.step(
      "its accountant tells what the isolate takes, and what has no room is not begun",
      async () => {
        const text = await (await fetch(`${worker.url}/metrics`)).text();
        const told = (kind: string) =>
          Number(text.match(`paligemma_isolate_bytes{kind="${kind}"} (\\d+)`)?.[1]) / 1e6;
        assert.ok(told("now") > 50 && told("now") < 100, text);
        assert.ok(told("most") > told("now") && told("most") < told("limit"), text);
        assert.match(text, /^paligemma_model_read_bytes_total [1-9]\d{7,}$/m);
        // Its header is enough: 2000 x 2000 pixels.
        const large = PICTURE.slice(0, 64);
        new DataView(large.buffer).setUint32(16, 2000);
        new DataView(large.buffer).setUint32(20, 2000);
        const image = large.toBase64();
        const refused = await ask("/v1/embeddings/image", body({ image }));
        assert.deepEqual([refused.status, refused.content.code], [413, "memory_exceeded"]);
        assert.match(refused.content.detail, /2000 x 2000 pixels: it takes 56\.0 MB, of 120\.0 MB there are/);
      },
    );

    await t.step("weights that were taken away are missed, not guessed", async () => {
      const authorization = `Bearer ${KEY}`;
      await fetch(`${worker.url}/uploads/${NAME}/model.safetensors`, {
        method: "DELETE",
        headers: { authorization },
      });
      const now = await ask("/v1/embeddings/image", body({ image: OTHER.toBase64() }));
      assert.deepEqual([now.status, now.content.code], [500, "model_invalid"]);
      assert.match(now.content.detail, /expected the file that was there, found another or none/);
      const then = await ask("/v1/embeddings/image", body({ image: OTHER.toBase64() }));
      assert.match(then.content.detail, /expected model\.safetensors/);
    });
  } finally {
    await worker.stop();
    await Deno.remove(directory, { recursive: true });
  }
});
