// @ts-self-types="./codecs.d.ts"
// JavaScript, because TypeScript cannot parse `import source`, which gives a compiled module on Deno and Workers.
import source jpegModule from "@jsquash/jpeg/codec/dec/mozjpeg_dec.wasm";
import source pngModule from "@jsquash/png/codec/pkg/squoosh_png_bg.wasm";
import source webpModule from "@jsquash/webp/codec/dec/webp_dec.wasm";

export { default as jpegFactory } from "@jsquash/jpeg/codec/dec/mozjpeg_dec.js";
export { default as webpFactory } from "@jsquash/webp/codec/dec/webp_dec.js";
export { jpegModule, pngModule, webpModule };
