/**
 * PaliGemma at the edge: pictures and a prompt in, a stream of tokens and boxes out.
 *
 * A door makes a backend from the compiled kernels, wraps a model directory as {@link ModelFiles}, and hands both to
 * {@link createPipeline}.
 *
 * @module
 */

export * from "./types.ts";
export { type ErrorCode, RequestError } from "./errors.ts";
export type { Backend } from "./backend/backend.ts";
export { createReferenceBackend } from "./backend/reference.ts";
export { createWasmBackend } from "./backend/wasm.ts";
export { frameIndices, promptOf } from "./text/prompt.ts";
export { pixelsOf } from "./vision/mask_forms.ts";
export {
  collect,
  createPipeline,
  type LocalPipeline,
  type Pipeline,
  type PipelineParts,
  type Stages,
} from "./pipeline.ts";
