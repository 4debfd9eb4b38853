import assert from "node:assert/strict";
import { Breakers } from "../../lib/pool/breaker.ts";
import { type Pool, PoolError, type PoolErrorCode, type PoolEvent, type Work } from "../../lib/pool/pool.ts";
import { ending, KeptBlocks, type Place, Relay } from "../../lib/pool/relay.ts";
import { Serving, trialWork } from "../../lib/pool/serving.ts";

const WORK: Work = {
  ...trialWork({ revision: "r", imageSize: 2, imageTokens: 1, width: 2, context: 64, vocabulary: 10 }),
  maxTokens: 6,
};

/** Counts: the n-th token is n. Breaks with `code` when it would give token `at`. */
function counting(
  name: string,
  code?: PoolErrorCode,
  at = 0,
  asked: number[] = [],
): Place & { asked: number[] } {
  return {
    name,
    asked,
    async *submit(work) {
      asked.push(work.given.length);
      for (let id = work.given.length; id < work.maxTokens; id++) {
        await Promise.resolve();
        if (code && id === at) throw new PoolError(code, "broke");
        yield { type: "token", id, text: "", logprob: -1, nearLogprob: -1 };
      }
      yield* ending(work, work.maxTokens, "length", 1);
    },
  };
}

const ids = (events: PoolEvent[]) => events.flatMap((it) => it.type === "token" ? [it.id] : []);

for (let at = 0; at < 6; at++) {
  Deno.test(`an answer that breaks at token ${at} has every token once, in order`, async () => {
    const places = [counting("a", "gone", at), counting("b", "gone", Math.max(at, 4)), counting("c")];
    const events = await Array.fromAsync(new Relay(places).submit(WORK));
    assert.deepEqual(ids(events), [0, 1, 2, 3, 4, 5]);
    assert.equal(events.at(-1)!.type, "done");
    assert.deepEqual(places.map((it) => it.asked), [[0], [at], [Math.max(at, 4)]]);
  });
}

Deno.test("a pool is asked again while another worker could do better, and not when all would say the same", async () => {
  for (
    const [code, times] of [["gone", 3], ["busy", 3], ["nobody", 1], ["unsigned", 1], [
      "revision",
      1,
    ]] as const
  ) {
    const pool = { ...counting("pool", code), attempts: 3 };
    const told: string[] = [];
    const relay = new Relay([pool, counting("local")], {
      left: (place, { code }, _, forGood) => told.push(`${place} ${code}${forGood ? " for good" : ""}`),
      answered: (place) => told.push(place),
    });
    assert.deepEqual(ids(await Array.fromAsync(relay.submit(WORK))), [0, 1, 2, 3, 4, 5]);
    const left = [...Array(times - 1).fill(`pool ${code}`), `pool ${code} for good`];
    assert.deepEqual(told, [...left, "local"]);
  }
});

Deno.test("what no place does ends in the last one's error; what is no pool's error is passed on at once", async () => {
  const last = new Relay([counting("a", "gone"), counting("b", "late", 3)]);
  await assert.rejects(Array.fromAsync(last.submit(WORK)), { code: "late" });
  const broken: Place = {
    name: "x",
    submit: () => {
      throw new TypeError("ours");
    },
  };
  const next = counting("b");
  await assert.rejects(Array.fromAsync(new Relay([broken, next]).submit(WORK)), TypeError);
  assert.deepEqual(next.asked, []);
});

Deno.test("a circuit opens for a second, twice as long at every further failure, a minute at most; success closes it", () => {
  let now = 0;
  const breakers = new Breakers(() => now);
  assert.ok(!breakers.open("w") && !breakers.some);
  for (const ms of [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]) {
    breakers.failed("w");
    assert.ok(breakers.open("w") && breakers.some && !breakers.open("v"));
    now += ms - 1;
    assert.ok(breakers.open("w"), `${ms}`);
    now += 1;
    assert.ok(!breakers.open("w") && !breakers.some, `${ms}`);
  }
  breakers.succeeded("w");
  breakers.failed("w");
  now += 1000;
  assert.ok(!breakers.open("w"));
});

/** Counts, the first token after so long. */
function slow(name: string, ms: number, code?: PoolErrorCode, at = 0): Place & { ended: string[] } {
  const ended: string[] = [];
  const { submit } = counting(name, code, at);
  return {
    name,
    ended,
    async *submit(work, options) {
      try {
        await new Promise<void>((wake) => {
          const timer = setTimeout(wake, ms);
          options?.signal?.addEventListener("abort", () => (clearTimeout(timer), wake()), { once: true });
        });
        if (options?.signal?.aborted) return void ended.push("stopped");
        yield* submit(work, options);
        ended.push("done");
      } catch (error) {
        ended.push((error as PoolError).code);
        throw error;
      }
    },
  };
}

Deno.test("a second place begins when the first is late, and who is first goes on alone: no token twice", async () => {
  const play = async (first: Place, second: Place, afterMs: number, allowed = true) => {
    const told: string[] = [];
    const relay = new Relay([first, counting("last")], {
      answered: (place) => told.push(`${place} answered`),
      left: (place, { code }) => told.push(`${place} ${code}`),
      overtaken: (place) => told.push(`${place} overtaken`),
    }, { place: second, afterMs, take: () => allowed });
    assert.deepEqual(ids(await Array.fromAsync(relay.submit(WORK))), [0, 1, 2, 3, 4, 5]);
    return told;
  };
  const second = slow("b", 5);
  const late = slow("a", 10_000);
  assert.deepEqual(await play(late, second, 1), ["a overtaken", "b answered"]);
  assert.deepEqual([late.ended, second.ended], [["stopped"], ["done"]]);
  assert.deepEqual(await play(slow("a", 5), slow("b", 1), 1000), ["a answered"]);
  assert.deepEqual(await play(slow("a", 20), slow("b", 1), 1, false), ["a answered"]);
  // The first is quicker after all; the second fails; both fail; the second breaks off later.
  assert.deepEqual(await play(slow("a", 20), slow("b", 10_000), 1), ["b overtaken", "a answered"]);
  assert.deepEqual(await play(slow("a", 20), slow("b", 1, "busy"), 1), ["b overtaken", "a answered"]);
  assert.deepEqual(await play(slow("a", 20, "gone"), slow("b", 1, "busy"), 1), [
    "b busy",
    "a gone",
    "last answered",
  ]);
  assert.deepEqual(await play(late, slow("b", 1, "gone", 3), 1), ["a overtaken", "b gone", "last answered"]);
});

Deno.test("who stops listening while two places compute stops them both", async () => {
  const [first, second] = [slow("a", 10_000), slow("b", 10_000)];
  const stop = new AbortController();
  const events = new Relay([first], {}, { place: second, afterMs: 1, take: () => true })
    .submit(WORK, { signal: stop.signal });
  const next = events.next();
  await new Promise((wake) => setTimeout(wake, 10));
  stop.abort();
  await next;
  assert.deepEqual([first.ended, second.ended], [["stopped"], ["stopped"]]);
});

/** An engine whose tokens come when they are let. */
function gated() {
  const gates: (() => void)[] = [];
  const engine: Pool = {
    async *submit(work) {
      for (let id = 0; id < work.maxTokens; id++) {
        await new Promise<void>((go) => gates.push(go));
        yield { type: "token", id, text: "", logprob: -1, nearLogprob: -1 };
      }
      yield* ending(work, work.maxTokens, "length", 1);
    },
  };
  return { engine, step: () => gates.splice(0).forEach((go) => go()), gates };
}

const settle = () => new Promise((wake) => setTimeout(wake, 1));

Deno.test("a worker computes so many, lets so many wait in order, refuses more; a waiting caller may leave", async () => {
  const { engine, step, gates } = gated();
  const serving = new Serving(engine, { maxActive: 1, maxWaiting: 2 });
  const ended: string[] = [];
  const ask = async (name: string, signal?: AbortSignal) => {
    try {
      await Array.fromAsync(serving.submit({ ...WORK, maxTokens: 1 }, { signal }));
      ended.push(name);
    } catch (error) {
      ended.push(`${name} ${(error as PoolError).code}`);
    }
  };
  const stop = new AbortController();
  const all = [ask("a"), ask("b", stop.signal), ask("c"), ask("d")];
  await settle();
  assert.deepEqual(ended, ["d busy"]);
  assert.deepEqual([serving.load().active, serving.load().waiting, gates.length], [1, 2, 1]);
  stop.abort();
  await settle();
  for (let i = 0; i < 2; i++) {
    step();
    await settle();
  }
  await Promise.all(all);
  assert.deepEqual(ended, ["d busy", "b gone", "a", "c"]);
  assert.deepEqual([serving.load().active, serving.load().waiting], [0, 0]);
});

Deno.test("what an answer will take is told from what answers took, alone and together", async () => {
  let clock = 0;
  const begun: (() => void)[] = [];
  // 100 ms to a first token; then passes of 10 ms, 2 more for every other answer in them.
  const engine: Pool = {
    async *submit(work) {
      clock += 100;
      for (let id = 0; id < work.maxTokens; id++) {
        yield { type: "token", id, text: "", logprob: -1, nearLogprob: -1 };
        await new Promise<void>((go) => begun.push(go));
      }
      yield* ending(work, work.maxTokens, "length", 1);
    },
  };
  const serving = new Serving(engine, { maxActive: 4, maxWaiting: 4 }, undefined, () => clock);
  const answers = async (count: number) => {
    const all = Array.from(
      { length: count },
      () => Array.fromAsync(serving.submit({ ...WORK, maxTokens: 16 })),
    );
    for (let token = 0; token < 16; token++) {
      await settle();
      if (token < 15) clock += 10 + 2 * (count - 1);
      begun.splice(0).forEach((go) => go());
    }
    await Promise.all(all);
  };
  assert.equal(serving.predictMs(16), 0, "nobody knows yet");
  await answers(1);
  const { firstMs, tokenMs, addedMs } = serving.load();
  assert.deepEqual([firstMs, tokenMs, addedMs], [100, 10, 10]);
  assert.equal(serving.predictMs(16), 260);
  for (let i = 0; i < 40; i++) await answers(3);
  assert.ok(Math.abs(serving.load().tokenMs - 10) < 0.1 && Math.abs(serving.load().addedMs - 2) < 0.1);
  const seats = Array.from({ length: 5 }, () => serving.enter(16));
  const ahead = serving.predictMs(16); // two wait before it
  for (const it of seats) it.leave();
  assert.ok(Math.abs(ahead - serving.predictMs(16) * 1.5) < 1e-6);
});

Deno.test("draining refuses what is new and waits for what was begun", async () => {
  const { engine, step } = gated();
  const serving = new Serving(engine, { maxActive: 2, maxWaiting: 0 });
  const running = Array.fromAsync(serving.submit({ ...WORK, maxTokens: 1 }));
  await settle();
  let drained = false;
  const draining = serving.drain().then(() => drained = true);
  await assert.rejects(Array.fromAsync(serving.submit(WORK)), { code: "busy" });
  assert.ok(!drained);
  step();
  assert.equal((await running).length, 3);
  await draining;
});

Deno.test("blocks are computed once: who comes later has those that are there, then the rest; an error is everybody's", async () => {
  const gate = Promise.withResolvers<void>();
  let runs = 0;
  const kept = new KeptBlocks(async function* () {
    runs++;
    yield Uint8Array.of(1);
    yield Uint8Array.of(2);
    await gate.promise;
    yield Uint8Array.of(3);
  });
  const first = kept.read();
  const seen = (await first.next()).value;
  await first.return(undefined); // its worker broke; the blocks go on
  const second = Array.fromAsync(kept.read());
  gate.resolve();
  const all = await second;
  assert.deepEqual(all.map((it) => it[0]), [1, 2, 3]);
  assert.ok(all[0] === seen && runs === 1);
  assert.deepEqual(await Array.fromAsync(kept.read()), all);

  const failing = new KeptBlocks(async function* () {
    yield Uint8Array.of(1);
    await Promise.resolve();
    throw new RangeError("no more");
  });
  for (let i = 0; i < 2; i++) await assert.rejects(Array.fromAsync(failing.read()), RangeError);
  assert.ok(failing.error instanceof RangeError && kept.error === undefined);
});

/** Hands over to a place when so many tokens were given. */
const over = (to: Place, at: number) => ({
  everyMs: 5,
  asked: [] as string[],
  next(place: string, given: number) {
    this.asked.push(`${place} ${given}`);
    return given >= at ? to : undefined;
  },
});

for (let at = 1; at < 6; at++) {
  Deno.test(`an answer that is handed over at token ${at} has every token once, in order, and is so once`, async () => {
    const [one, two] = [counting("a"), counting("b")];
    const handover = over(two, at);
    const events = await Array.fromAsync(new Relay([one], {}, undefined, handover).submit(WORK));
    assert.deepEqual(ids(events), [0, 1, 2, 3, 4, 5]);
    assert.deepEqual([one.asked, two.asked, events.at(-1)!.type], [[0], [at], "done"]);
    assert.deepEqual(handover.asked, Array.from({ length: at }, (_, i) => `a ${i + 1}`));
  });
}

Deno.test("where it cannot be handed over to, it goes on where it was", async () => {
  const told: string[] = [];
  const [one, two, three] = [counting("a"), counting("b", "gone", 4), counting("c")];
  const relay = new Relay(
    [one, three],
    { left: (place, { code }) => told.push(`${place} ${code}`), answered: (place) => told.push(place) },
    undefined,
    over(two, 3),
  );
  assert.deepEqual(ids(await Array.fromAsync(relay.submit(WORK))), [0, 1, 2, 3, 4, 5]);
  assert.deepEqual([one.asked, two.asked, three.asked, told], [[0, 4], [3], [], ["b gone", "a"]]);
});

Deno.test("it is looked after while no token comes, and what is left then is stopped", async () => {
  let stopped = 0;
  const stuck: Place = {
    name: "stuck",
    async *submit(work, { signal } = {}) {
      for await (const event of counting("x").submit(work)) {
        if (event.type === "token" && event.id === 2) {
          await new Promise<void>((wake) => signal!.addEventListener("abort", () => wake(), { once: true }));
          stopped++;
          return;
        }
        yield event;
      }
    },
  };
  const since = performance.now();
  const handover = {
    everyMs: 5,
    next: (_: string, given: number) =>
      given === 2 && performance.now() - since > 40 ? counting("b") : undefined,
  };
  const events = await Array.fromAsync(new Relay([stuck], {}, undefined, handover).submit(WORK));
  assert.deepEqual([ids(events), stopped], [[0, 1, 2, 3, 4, 5], 1]);
});
