/** What an adapter is, and how fast it reads and copies its memory: the limit of a token. */

/** An adapter in its own words. */
export interface AdapterWords {
  readonly vendor: string;
  readonly architecture: string;
  readonly device: string;
  readonly description: string;
  /** Of the kernel module, where there is NVIDIA's. */
  readonly driver?: string;
  readonly features: readonly string[];
  readonly subgroups?: string;
  readonly limits: Readonly<Record<string, number>>;
}

/** Bytes a second. */
export interface Bandwidth {
  readonly bufferBytes: number;
  readonly read: number;
  /** Both ways counted. */
  readonly copy: number;
}

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
] as const;

/** Describes an adapter. */
export async function wordsOf({ info, features, limits }: GPUAdapter): Promise<AdapterWords> {
  const { vendor, architecture, device, description, subgroupMinSize, subgroupMaxSize } = info;
  const module = await Deno.readTextFile("/proc/driver/nvidia/version").catch(() => "");
  return {
    ...{ vendor, architecture, device, description },
    driver: module.match(/NVRM version: (.*)/)?.[1].replace(/\s+/g, " "),
    features: [...features].sort(),
    subgroups: subgroupMinSize ? `${subgroupMinSize} to ${subgroupMaxSize}` : undefined,
    limits: Object.fromEntries(LIMITS.map((it) => [it, limits[it]])),
  };
}

/** Workgroups of one dispatch, enough for any GPU, each lane going on by as many as there are lanes. */
const [GROUPS, LANES] = [4096, 256];
const MOST_BYTES = 2 ** 30;
/** Rounds over the buffer before the clock is read, fewer where they take longer than that. */
const [MOST_ROUNDS, ENOUGH_MS] = [64, 200];

const TEXT = `
@group(0) @binding(0) var<storage, read_write> words: array<vec4<u32>>;
const LANES = ${GROUPS * LANES}u;

@compute @workgroup_size(${LANES})
fn fill(@builtin(global_invocation_id) id: vec3<u32>) {
  for (var i = id.x; i < arrayLength(&words); i += LANES) { words[i] = (vec4<u32>(i) + vec4<u32>(1, 2, 3, 4)) * 2654435761u; }
}

/// Four sums, so that reads do not wait for one another; written where they come to what they never do.
@compute @workgroup_size(${LANES})
fn read(@builtin(global_invocation_id) id: vec3<u32>) {
  var sums = array<vec4<u32>, 4>();
  let count = arrayLength(&words);
  for (var i = id.x; i + 3 * LANES < count; i += 4 * LANES) {
    sums[0] ^= words[i];
    sums[1] ^= words[i + LANES];
    sums[2] ^= words[i + 2 * LANES];
    sums[3] ^= words[i + 3 * LANES];
  }
  let sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  if (all(sum == vec4<u32>(0x12345678u))) { words[id.x] = sum; }
}

@compute @workgroup_size(${LANES})
fn copy(@builtin(global_invocation_id) id: vec3<u32>) {
  let half = arrayLength(&words) / 2;
  for (var i = id.x; i < half; i += LANES) { words[half + i] = words[i]; }
}
`;

/** Measures an adapter on a device of its own. */
export async function measureBandwidth(adapter: GPUAdapter): Promise<Bandwidth> {
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  const step = 4 * GROUPS * LANES * 16; // no read is left over
  const most = Math.min(MOST_BYTES, maxStorageBufferBindingSize, maxBufferSize);
  const size = Math.floor(most / step) * step;
  const device = await adapter.requestDevice({
    requiredLimits: { maxStorageBufferBindingSize, maxBufferSize },
  });
  try {
    const buffer = device.createBuffer({ size, usage: 0x80 });
    const module = device.createShaderModule({ code: TEXT });
    const layout = device.createBindGroupLayout({
      entries: [{ binding: 0, visibility: 4, buffer: { type: "storage" } }],
    });
    const group = device.createBindGroup({ layout, entries: [{ binding: 0, resource: { buffer } }] });
    const pipelineLayout = device.createPipelineLayout({ bindGroupLayouts: [layout] });
    /** Milliseconds of so many rounds. */
    const run = async (pipeline: GPUComputePipeline, rounds: number) => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      for (let i = 0; i < rounds; i++) pass.dispatchWorkgroups(GROUPS);
      pass.end();
      const commands = encoder.finish();
      const since = performance.now();
      device.queue.submit([commands]);
      await device.queue.onSubmittedWorkDone();
      return performance.now() - since;
    };
    const pipeline = (entryPoint: string) =>
      device.createComputePipelineAsync({ layout: pipelineLayout, compute: { module, entryPoint } });
    const rate = async (entryPoint: string) => {
      const compiled = await pipeline(entryPoint);
      const once = await run(compiled, 1).then(() => run(compiled, 1));
      const rounds = Math.max(1, Math.min(MOST_ROUNDS, Math.floor(ENOUGH_MS / once)));
      let best = Infinity;
      for (let i = 0; i < 5; i++) best = Math.min(best, await run(compiled, rounds) / rounds);
      return size * 1000 / best;
    };
    await run(await pipeline("fill"), 1);
    return { bufferBytes: size, read: await rate("read"), copy: await rate("copy") };
  } finally {
    device.destroy();
  }
}
