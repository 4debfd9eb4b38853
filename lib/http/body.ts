/** A request body as named fields, read no further than its cap. */

import { RequestError } from "../errors.ts";

/**
 * Fields by name. JSON gives what `JSON.parse` gives; a form gives strings, and for its file parts arrays of bytes.
 */
export interface Fields {
  readonly kind: "json" | "form";
  readonly values: ReadonlyMap<string, unknown>;
}

/**
 * Reads a JSON object or a multipart form.
 *
 * @throws {RequestError} `body_too_large` beyond `maxBytes`, `body_invalid` for anything else that is wrong.
 */
export async function readFields(request: Request, maxBytes: number): Promise<Fields> {
  const type = request.headers.get("content-type") ?? "";
  const essence = type.split(";", 1)[0].trim().toLowerCase();
  if (essence === "application/json") return jsonFields(await readBytes(request, maxBytes));
  if (essence === "multipart/form-data") return await formFields(await readBytes(request, maxBytes), type);
  throw invalid(
    `expected the content type application/json or multipart/form-data, found ${describe(essence)}`,
  );
}

/** Reads a JSON body, whatever it is; its content type too is the caller's to choose. */
export async function readJson(request: Request, maxBytes: number): Promise<unknown> {
  return parseJson(await readBytes(request, maxBytes));
}

/** All bytes of a body; stops at `maxBytes`, whatever the headers promise. */
export async function readBytes(request: Request, maxBytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const promised = Number(request.headers.get("content-length") ?? 0);
  if (promised > maxBytes) throw tooLarge(maxBytes, `${promised} bytes`);
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = request.body?.getReader();
  while (reader) {
    const { done, value } = await reader.read().catch((cause) => {
      throw new RequestError("cancelled", "Cannot read the request body: the connection ended within it", {
        cause,
      });
    });
    if (done) break;
    size += value.length;
    if (size > maxBytes) {
      // The rest is of no interest, and whether the sender hears of it is not ours to wait for.
      reader.cancel().catch(() => {});
      throw tooLarge(maxBytes, "more");
    }
    chunks.push(value);
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/** A value as an error message names it: its kind, and no more of it than fits a line. */
export function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  if (value === null || typeof value === "boolean" || typeof value === "number") return String(value);
  if (typeof value === "string") {
    const short = value.length > 40 ? value.slice(0, 40) + "…" : value;
    return JSON.stringify(short.toWellFormed());
  }
  if (value instanceof Uint8Array) return "a file";
  return Array.isArray(value) ? `an array of ${value.length}` : "an object";
}

function parseJson(bytes: Uint8Array): unknown {
  if (!bytes.length) throw invalid("expected a JSON object, found no bytes");
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    // A TypeError is the text decoder's.
    const found = cause instanceof SyntaxError ? briefly(cause.message) : "bytes that are not UTF-8";
    throw invalid(`expected JSON, found ${found}`, cause);
  }
}

function jsonFields(bytes: Uint8Array): Fields {
  const value = parseJson(bytes);
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid(`expected a JSON object, found ${describe(value)}`);
  }
  return { kind: "json", values: new Map(Object.entries(value)) };
}

async function formFields(bytes: Uint8Array<ArrayBuffer>, type: string): Promise<Fields> {
  const [, quoted, bare] = /;\s*boundary=(?:"([^"]+)"|([^;\s]+))/i.exec(type) ?? [];
  const boundary = quoted ?? bare;
  if (!boundary) throw invalid(`expected a boundary in the content type, found ${describe(type)}`);
  const last = `--${boundary}--`;
  // A parser that meets the end of a cut body may take what it has for the whole.
  if (!new TextDecoder("latin1").decode(bytes.subarray(-last.length - 2)).includes(last)) {
    throw invalid(
      `expected a multipart form that ends in ${describe(last)}, found ${bytes.length} bytes that do not`,
    );
  }
  let form: FormData;
  try {
    form = await new Response(bytes, { headers: { "content-type": type } }).formData();
  } catch (cause) {
    throw invalid("expected a multipart form, found bytes that do not follow its boundaries", cause);
  }
  const values = new Map<string, unknown>();
  for (const name of new Set(form.keys())) {
    const parts = form.getAll(name);
    const files = parts.filter((it) => typeof it !== "string");
    if (files.length && files.length < parts.length) {
      throw invalid(`expected files only in the field ${describe(name)}, found text too`);
    }
    if (!files.length && parts.length > 1) {
      throw invalid(`expected the field ${describe(name)} once, found it ${parts.length} times`);
    }
    const bytes = files.map(async (it) => new Uint8Array(await it.arrayBuffer()));
    values.set(name, files.length ? await Promise.all(bytes) : parts[0]);
  }
  return { kind: "form", values };
}

/** V8 quotes the document in its message; a picture in base64 must not end up there. */
function briefly(message: string): string {
  return message.length > 100 ? message.slice(0, 100) + "…" : message;
}

function invalid(message: string, cause?: unknown): RequestError {
  return new RequestError("body_invalid", `Cannot read the request body: ${message}`, { cause });
}

function tooLarge(maxBytes: number, found: string): RequestError {
  return new RequestError(
    "body_too_large",
    `Cannot read the request body: expected at most ${maxBytes} bytes, found ${found}`,
  );
}
