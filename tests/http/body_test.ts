import assert from "node:assert/strict";
import { readBytes, readFields } from "../../lib/http/body.ts";
import { loadPictures } from "../../lib/http/pictures.ts";
import { problemOf } from "../../lib/http/problem.ts";
import { readQuestion } from "../../lib/http/question.ts";
import { PICTURE } from "./doubles.ts";

const image = PICTURE.toBase64();
const JSON_TYPE = "application/json";

async function read(body: BodyInit, type?: string, maxBytes = 1 << 20) {
  const headers: HeadersInit = type === undefined ? {} : { "content-type": type };
  const request = new Request("http://x/", { method: "POST", body, headers });
  const { pictures, ...asked } = readQuestion(await readFields(request, maxBytes));
  return { ...asked, images: await loadPictures(pictures, undefined) };
}

async function refused(promise: Promise<unknown>, code: string, message: RegExp) {
  await assert.rejects(promise, (error) => {
    const problem = problemOf(error);
    assert.equal(problem.code, code, String(error));
    assert.match(problem.message, message);
    return true;
  });
}

/** A body of so many bytes, drawn in pieces, that counts what was drawn. */
function endless(pieceBytes: number) {
  const seen = { drawn: 0, cancelled: false };
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      seen.drawn += pieceBytes;
      controller.enqueue(new Uint8Array(pieceBytes));
    },
    cancel() {
      seen.cancelled = true;
    },
  });
  return { stream, seen };
}

Deno.test("a body longer than its cap is refused from its header, or when the cap is reached", async () => {
  const exact = new Request("http://x/", { method: "POST", body: new Uint8Array(100) });
  assert.equal((await readBytes(exact, 100)).length, 100);

  const { stream, seen } = endless(100);
  const promised = new Request("http://x/", {
    method: "POST",
    body: stream,
    headers: { "content-length": "5000", "content-type": JSON_TYPE },
  });
  await refused(readFields(promised, 1000), "body_too_large", /at most 1000 bytes, found 5000/);
  assert.ok(seen.drawn <= 100, "nothing was read beyond what the stream fetches by itself");

  const silent = endless(100);
  const request = new Request("http://x/", {
    method: "POST",
    body: silent.stream,
    headers: { "content-type": JSON_TYPE },
  });
  await refused(readFields(request, 1000), "body_too_large", /at most 1000 bytes, found more/);
  assert.ok(silent.seen.drawn <= 1300 && silent.seen.cancelled, JSON.stringify(silent.seen));
});

Deno.test("a body whose connection ends within it is cancelled, not a mistake of ours", async () => {
  let pulls = 0;
  const body = new ReadableStream({
    pull(controller) {
      if (pulls++) controller.error(new TypeError("connection reset"));
      else controller.enqueue(new TextEncoder().encode("{"));
    },
  });
  const request = new Request("http://x/", { method: "POST", body, headers: { "content-type": JSON_TYPE } });
  await refused(readFields(request, 1000), "cancelled", /connection ended/);
});

Deno.test("bodies that are not what they say are refused, telling what was found", async () => {
  const invalid = "body_invalid";
  await refused(
    read("{}", "text/plain"),
    invalid,
    /application\/json or multipart\/form-data, found "text\/plain"/,
  );
  await refused(read(new Uint8Array([1])), invalid, /found ""/);
  await refused(read("", JSON_TYPE), invalid, /found no bytes/);
  await refused(read("{", JSON_TYPE), invalid, /expected JSON/);
  await refused(read("[".repeat(100_000), JSON_TYPE), invalid, /expected JSON/);
  await refused(read("[1]", JSON_TYPE), invalid, /object, found an array of 1/);
  await refused(read("null", JSON_TYPE), invalid, /found null/);
  await refused(read(new Uint8Array([0x22, 0xff, 0x22]), JSON_TYPE), invalid, /not UTF-8/);
  await refused(
    read("--x\r\nnonsense", "multipart/form-data; boundary=x"),
    invalid,
    /ends in "--x--", found 13 bytes/,
  );
  await refused(read("--x\r\nnonsense", "multipart/form-data"), invalid, /expected a boundary/);
  const secret = "A".repeat(5000);
  await assert.rejects(
    read(`{"image":"${secret}" nope`, JSON_TYPE),
    (error: Error) => error.message.length < 250,
  );
});

Deno.test("fields of a wrong kind are named, with what was expected and found", async () => {
  const cases: [Record<string, unknown>, string, RegExp][] = [
    [{ prompt: undefined }, "body_invalid", /prompt: expected a string, which may be empty, found nothing/],
    [{ prompt: 5 }, "body_invalid", /prompt: expected a string.*found 5/],
    [
      { prompt: "a\ud800" },
      "body_invalid",
      /prompt: expected Unicode text .half a surrogate pair is none., found "a/,
    ],
    [{ maxTokens: "7" }, "body_invalid", /maxTokens: expected a whole number, 1 or more, found "7"/],
    [{ maxTokens: 1.5 }, "body_invalid", /maxTokens: expected a whole number, 1 or more, found 1.5/],
    [{ maxTokens: null }, "body_invalid", /maxTokens: expected a whole number, 1 or more, found null/],
    [{ seed: 2 ** 63 }, "parameter_invalid", /seed: expected a whole number, from 0 to 4294967295/],
    [{ topK: {} }, "body_invalid", /topK: expected a whole number, 0 or more, found an object/],
    [{ temperature: [1] }, "body_invalid", /temperature: expected a number from 0 to 2, found an array of 1/],
    [{ stream: 1 }, "body_invalid", /stream: expected true or false, found 1/],
    [{ ignoreEos: "true" }, "body_invalid", /ignoreEos: expected true or false, found "true"/],
    [
      { resize: "nearest" },
      "parameter_invalid",
      /resize: expected hf-bicubic or bv-bilinear-aa, found "nearest"/,
    ],
    [{ alpha: 3 }, "parameter_invalid", /alpha: expected drop or white, found 3/],
    [{ maxtokens: 3 }, "parameter_invalid", /expected the fields image,.*found "maxtokens"/],
    [{ constructor: 3 }, "parameter_invalid", /found "constructor"/],
    [{ images: [image] }, "parameter_invalid", /image or images, found both/],
  ];
  for (const [fields, code, message] of cases) {
    await refused(read(JSON.stringify({ image, prompt: "", ...fields }), JSON_TYPE), code, message);
  }
  await refused(read('{"__proto__":1}', JSON_TYPE), "parameter_invalid", /found "__proto__"/);
});

Deno.test("pictures that are missing or not base64 are refused, by place", async () => {
  const cases: [unknown, string, RegExp][] = [
    [{}, "image_missing", /image or images, found neither/],
    [{ images: [] }, "image_missing", /images: expected at least one picture/],
    [{ image: "" }, "image_missing", /image: found an empty string/],
    [{ image: "data:image/png;base64," }, "image_missing", /image: found an empty picture/],
    [{ image: 5 }, "body_invalid", /image: expected a base64 string, a data: URL or an https: URL, found 5/],
    [{ image: [image] }, "body_invalid", /image: expected a base64 string.*found an array of 1/],
    [{ images: image }, "body_invalid", /images: expected an array/],
    [{ images: [image, null] }, "body_invalid", /images\[1\]: .*found null/],
    [{ image: "iVBO Rw0K" }, "body_invalid", /expected base64, found " " at character 4/],
    [{ image: "iVBORw0K😀" }, "body_invalid", /found "😀" at character 8/],
    [{ image: "iVBO_w0K" }, "body_invalid", /found "_" at character 4/],
    [{ image: "iVBORw0" }, "body_invalid", /padded with =, found 7 characters/],
    [{ image: "iVBORx==" }, "body_invalid", /padded with =/],
    [{ image: "iV=ORw0K" }, "body_invalid", /padded with =/],
    [{ image: "data:image/png;base64,!!!" }, "body_invalid", /found "!" at character 22/],
    [{ image: "data:image/png,abcd" }, "body_invalid", /data:<media type>;base64/],
    [{ image: "data:image/png;base64" }, "body_invalid", /data:<media type>;base64/],
    [{ image: "https://example.com/a.png" }, "body_invalid", /fetches no pictures/],
    [{ image: "file:///etc/passwd" }, "body_invalid", /expected base64, found ":" at character 4/],
  ];
  for (const [fields, code, message] of cases) {
    await refused(read(JSON.stringify({ prompt: "", ...fields as object }), JSON_TYPE), code, message);
  }
});

Deno.test("forms say what is wrong with them in the same words", async () => {
  function form(...parts: [string, string | Blob][]) {
    const made = new FormData();
    made.append("image", new Blob([PICTURE]), "a.png");
    for (const [name, value] of parts) made.append(name, value);
    return read(made);
  }
  await refused(form(), "body_invalid", /prompt: expected a string/);
  await refused(form(["prompt", ""], ["prompt", "a"]), "body_invalid", /"prompt" once, found it 2 times/);
  await refused(
    form(["prompt", new Blob(["a"])]),
    "body_invalid",
    /prompt: expected a string.*an array of 1/,
  );
  await refused(
    form(["prompt", ""], ["maxTokens", "many"]),
    "body_invalid",
    /maxTokens: expected a whole number, 1 or more, found "many"/,
  );
  await refused(
    form(["prompt", ""], ["maxTokens", ""]),
    "body_invalid",
    /maxTokens: expected a whole number, 1 or more, found ""/,
  );
  await refused(form(["prompt", ""], ["stream", "yes"]), "body_invalid", /stream: expected true or false/);
  await refused(form(["prompt", ""], ["image", "text"]), "body_invalid", /files only in the field "image"/);
  const text = new FormData();
  text.append("image", "picture.jpg");
  text.append("prompt", "");
  await refused(
    read(text),
    "body_invalid",
    /expected a file part \(curl -F image=@picture.jpg\) or a URL, found "picture.jpg"/,
  );
  const empty = new FormData();
  empty.append("image", new Blob([]), "a.png");
  empty.append("prompt", "");
  await refused(read(empty), "image_missing", /image: found an empty file/);
});
