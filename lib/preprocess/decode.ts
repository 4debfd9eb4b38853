/**
 * Encoded bytes to an upright RGB picture: JPEG with mozjpeg, PNG with Rust's png, WebP with libwebp, all three as
 * packaged by jSquash.
 *
 * Every picture gets an instance of its own, thrown away afterwards. That costs a third of a millisecond, gives the
 * memory back (a WebAssembly memory never shrinks) and leaves nothing behind from a picture that made C++ exit or
 * Rust panic.
 */

import type { AlphaPolicy, Memory, Picture } from "../types.ts";
import { jpegFactory, jpegModule, type LoadedDecoder, type LoaderOptions, pngModule } from "./codecs.js";
import { webpFactory, webpModule } from "./codecs.js";
import { type Container, corrupt } from "./container.ts";
import { checkSize, readHeader } from "./header.ts";
import { checkJpegIsWhole } from "./jpeg.ts";
import { type Rgba, upright } from "./orientation.ts";
import { bareWholePng } from "./png.ts";
import { wholeStill } from "./webp.ts";

export interface DecodeOptions {
  /** Width times height at most; checked from the header before anything is decoded. */
  readonly maxPixels: number;
  /** Defaults to `drop`. */
  readonly alpha?: AlphaPolicy;
  /** Asked before anything is decoded, where memory is limited. */
  readonly memory?: Memory;
}

/** A pixel in a decoder's memory, copied out of it, and upright: RGBA, RGBA, RGB, and what a decoder keeps beside. */
const BYTES_PER_PIXEL = 4 + 4 + 3 + 3;

/**
 * Decodes a JPEG, PNG or WebP picture to 8-bit RGB and turns it upright (EXIF, all eight orientations, once). Grey,
 * palette and 16-bit pictures become 8-bit RGB, 16-bit samples by their high byte. Of an animation, the first frame.
 *
 * @throws {RequestError} `image_unsupported`, `image_too_large`, `image_corrupt` (also when the file breaks off).
 */
export async function decodePicture(bytes: Uint8Array, options: DecodeOptions): Promise<Picture> {
  const header = readHeader(bytes);
  checkSize(header, options.maxPixels);
  const { width, height } = header;
  using _ = options.memory?.take(
    width * height * BYTES_PER_PIXEL,
    `decode a picture of ${width} x ${height} pixels`,
  );
  const decoded = await { JPEG: decodeJpeg, PNG: decodePng, WebP: decodeWebp }[header.format](bytes, header);
  if (decoded.width !== header.width || decoded.height !== header.height) {
    corrupt(
      header.format,
      `its header gives ${header.width} x ${header.height} pixels, its data ${decoded.width} x ${decoded.height}`,
    );
  }
  return upright(decoded, header.orientation, options.alpha ?? "drop");
}

async function decodeJpeg(bytes: Uint8Array): Promise<Rgba> {
  checkJpegIsWhole(bytes);
  const said: string[] = [];
  const decoder = await load(jpegFactory, jpegModule, said);
  const decoded = run("JPEG", said, () => decoder.decode(bytes, false));
  // libjpeg warns and goes on, with grey or noise where data was missing. Stray bytes between segments, which many
  // cameras write, cost no pixel.
  const damage = said.find((it) => /^Premature end|^Corrupt JPEG data: (?!\d+ extraneous)/.test(it));
  if (damage) corrupt("JPEG", damage);
  return decoded;
}

async function decodeWebp(bytes: Uint8Array, canvas: Container): Promise<Rgba> {
  const still = wholeStill(bytes);
  const said: string[] = [];
  const decoder = await load(webpFactory, webpModule, said);
  const frame = run("WebP", said, () => decoder.decode(still.bytes));
  const { left, top } = still;
  const { width, height } = canvas;
  if (frame.width === width && frame.height === height || still.bytes.buffer === bytes.buffer) return frame;
  if (left + frame.width > width || top + frame.height > height) {
    corrupt("WebP", `its first frame does not fit its ${width} x ${height} canvas`);
  }
  const data = new Uint8Array(4 * width * height);
  for (let y = 0; y < frame.height; y++) {
    const row = frame.data.subarray(4 * y * frame.width, 4 * (y + 1) * frame.width);
    data.set(row, 4 * ((top + y) * width + left));
  }
  return { width, height, data };
}

async function decodePng(bytes: Uint8Array): Promise<Rgba> {
  const bare = await bareWholePng(bytes);
  let decoded: Rgba | undefined;
  // wasm-bindgen gives its imports names with a hash; what stands before it is stable.
  const imports: Record<string, (...args: number[]) => unknown> = {};
  for (const { name } of WebAssembly.Module.imports(pngModule)) {
    if (name.startsWith("__wbindgen_throw")) {
      imports[name] = (at, length) => {
        throw new Error(new TextDecoder().decode(new Uint8Array(memory.buffer, at >>> 0, length)));
      };
    } else if (name.startsWith("__wbg_newwithownedu8clampedarray")) {
      // The pixels are ours from here on; the instance is not used again, so they may stay where they are.
      imports[name] = (at, length, width, height) => {
        decoded = { width, height, data: new Uint8Array(memory.buffer, at >>> 0, length) };
        return 0;
      };
    } else imports[name] = () => 0;
  }
  const { exports } = new WebAssembly.Instance(pngModule, { wbg: imports });
  const memory = exports.memory as WebAssembly.Memory;
  return run("PNG", [], () => {
    const at = (exports.__wbindgen_malloc as (size: number, align: number) => number)(bare.length, 1) >>> 0;
    new Uint8Array(memory.buffer).set(bare, at);
    (exports.decode as (at: number, length: number) => number)(at, bare.length);
    return decoded ?? null;
  });
}

function load(
  factory: (options: LoaderOptions) => Promise<LoadedDecoder>,
  module: WebAssembly.Module,
  said: string[],
): Promise<LoadedDecoder> {
  const note = (line: string) => void said.push(line);
  return factory({
    noInitialRun: true,
    print: note,
    printErr: note,
    instantiateWasm(imports, done) {
      const instance = new WebAssembly.Instance(module, imports);
      done(instance);
      return instance.exports;
    },
  });
}

/** Runs a decoder; whatever it throws, an exit status of C, a C++ exception, a trap, means that it gave up. */
function run(format: Container["format"], said: readonly string[], decode: () => Rgba | null): Rgba {
  let decoded: Rgba | null;
  try {
    decoded = decode();
  } catch (cause) {
    corrupt(format, said.at(-1) ?? "its data is damaged", cause);
  }
  return decoded ?? corrupt(format, said.at(-1) ?? "its data is damaged");
}
