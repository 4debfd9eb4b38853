/**
 * GPUs for tests: drivers for Vulkan that need no hardware, where the machine has them. With `GPU_TESTS=hardware` the
 * machine's own GPU stands in for each of them, and nothing is skipped.
 */

import { type GpuProvider, openGpu } from "../../functions/gpu.ts";
import type { WebgpuBackend, WebgpuOptions } from "../../lib/backend/webgpu.ts";

/** As Debian installs them: `mesa-vulkan-drivers` 25 or later (Dawn refuses 22), `chromium`. */
const DRIVERS = {
  lavapipe: "/usr/share/vulkan/icd.d/lvp_icd.json",
  swiftshader: "/usr/lib/chromium/vk_swiftshader_icd.json",
} as const;

/** Whether tests run on a real GPU. */
export const hardware = Deno.env.get("GPU_TESTS") === "hardware";

/** What a driver is called in the names of tests. */
export function nameOf(driver: keyof typeof DRIVERS): string {
  return hardware ? "hardware" : driver === "lavapipe" ? "lavapipe" : "SwiftShader";
}

/**
 * Devices of this file of tests. What it has asked them for comes back before the file ends, and then they are closed:
 * Dawn aborts the process where the isolate ends and one of its promises is still open.
 */
const opened: WebgpuBackend[] = [];
Deno.test.afterAll(async () => {
  for (const it of opened) {
    // Reads come in their order; of a device that was lost each fails.
    await it.read(it.tensor(1, 1)).catch(() => {});
    it.close();
    await it.lost;
  }
});

/** What to open. */
export interface Software {
  readonly driver: keyof typeof DRIVERS;
  readonly provider?: GpuProvider;
  readonly options?: WebgpuOptions;
}

/**
 * A backend on a driver, open to the end of the file's tests; undefined where the machine has no such driver, unless
 * `GPU_TESTS=must` says that it has.
 *
 * @throws {Error} with `GPU_TESTS=hardware`, where there is no GPU.
 */
export async function openSoftware(
  { driver, provider = "dawn", options }: Software,
): Promise<WebgpuBackend | undefined> {
  const open = async () => {
    const backend = await openGpu(provider, options);
    opened.push(backend);
    return backend;
  };
  if (hardware) {
    const backend = await open();
    if (backend.software) throw new Error(`Cannot test on hardware: found "${backend.adapter}"`);
    return backend;
  }
  // The loader reads it for every device anew.
  Deno.env.set("VK_DRIVER_FILES", DRIVERS[driver]);
  try {
    return await open();
  } catch (error) {
    if (Deno.env.get("GPU_TESTS") === "must") throw error;
    return undefined;
  }
}
