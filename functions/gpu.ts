/** A GPU on a machine with Deno. */

import { RequestError } from "../lib/mod.ts";
import { createWebgpuBackend, type WebgpuBackend, type WebgpuOptions } from "../lib/backend/webgpu.ts";

/**
 * Dawn as a native add-on, 21 MB of 130 unpacked: a name that is not written where it is imported is fetched only when
 * that line runs.
 */
const DAWN = "npm:webgpu@0.6.2";

/**
 * `dawn` answers a read in 0.02 ms and computes while others work; `deno` is what the runtime has built in, which takes
 * 11 ms for each read and holds the thread meanwhile.
 */
export type GpuProvider = "dawn" | "deno";

/**
 * A backend on the machine's GPU: through Dawn, or where Dawn finds none, through Deno.
 *
 * @param provider the only one to try.
 * @throws {RequestError} `download_failed` where Dawn is neither here nor to be had; `parameter_invalid` where nothing
 * answers to Vulkan, Metal or Direct3D.
 */
export async function openGpu(provider?: GpuProvider, options?: WebgpuOptions): Promise<WebgpuBackend> {
  const providers: readonly GpuProvider[] = provider ? [provider] : ["dawn", "deno"];
  const causes: unknown[] = [];
  for (const it of providers) {
    const gpu = await gpuOf(it);
    try {
      return await createWebgpuBackend(gpu, options);
    } catch (cause) {
      causes.push(cause);
    }
  }
  throw new RequestError("parameter_invalid", `Cannot compute on a GPU: ${(causes[0] as Error).message}`, {
    cause: causes[0],
  });
}

/** A provider's entrance. @throws {RequestError} `download_failed` where Dawn is neither here nor to be had. */
export async function gpuOf(provider: GpuProvider): Promise<GPU> {
  return provider === "dawn" ? await loadDawn() : navigator.gpu;
}

async function loadDawn(): Promise<GPU> {
  const { create } = await import(DAWN).catch((cause) => {
    throw new RequestError("download_failed", `Cannot get ${DAWN}: ${cause.message.split("\n")[0]}`, {
      cause,
    });
  });
  calmPolling();
  return create(["disable-dawn-features=timestamp_quantization"]); // a trace's times in ns, not in 0.1 ms
}

/** For so long after a wait has begun, Dawn may ask without a pause. */
const EAGER_MS = 4;

let calm = false;

/**
 * While it waits, Dawn asks the driver in every turn of the event loop, through the global `setImmediate`, with a new
 * native function each time. Deno collects those so slowly that after some 400,000, ten seconds of waiting, the loop
 * stands still. So a wait that has gone on for a while goes on in steps of a millisecond. Where each read is asked for
 * before the last has come, all is one wait, whose steps are hidden behind what is computed meanwhile.
 */
function calmPolling(): void {
  if (calm) return;
  calm = true;
  const timers = globalThis as unknown as { setImmediate(callback: () => void, ...rest: unknown[]): unknown };
  const immediate = timers.setImmediate;
  let [inside, since] = [false, 0];
  const patient = (poll: () => void) => {
    const now = performance.now();
    if (!inside) since = now;
    const turn = () => {
      inside = true;
      try {
        poll();
      } finally {
        inside = false;
      }
    };
    return now - since < EAGER_MS ? immediate(turn) : setTimeout(turn, 1);
  };
  const native = (it: unknown) => /\{\s*\[native code\]\s*\}$/.test(Function.prototype.toString.call(it));
  timers.setImmediate = (callback, ...rest) =>
    native(callback) ? patient(callback) : immediate(callback, ...rest);
}
