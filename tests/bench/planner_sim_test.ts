import assert from "node:assert/strict";
import { Agenda } from "./planner/agenda.ts";
import { Chance } from "./planner/chance.ts";
import { lateness, simulate } from "./planner/engine.ts";
import { hitRates, overTime } from "./planner/plots.ts";
import { POLICIES } from "./planner/policies.ts";
import { SimulatedPool } from "./planner/pool.ts";
import { CLASSES, createWorld, HORIZON_MS } from "./planner/world.ts";
import { Link } from "./planner/link.ts";
import type { RealRow } from "./planner/real.ts";
import { bootstrapped, realScores } from "./planner/real_scores.ts";
import { budgetOf, drawTrace, type RealAsked } from "./planner/trace.ts";
import { runSimulation } from "./planner_sim.ts";

const classOf = (name: string) => CLASSES.filter((it) => it.name === name);

Deno.test("one seed, one result; another seed, another", () => {
  const run = (seed: number) => runSimulation(classOf("cold-start"), 4, seed).classes;
  const [first] = [run(5)];
  assert.deepEqual(run(5), first);
  assert.notDeepEqual(run(6), first);
});

Deno.test("in a small world the planner is ahead of the others and close to the oracle", () => {
  const [diurnal, failing] =
    runSimulation([...classOf("diurnal"), ...classOf("pool-failure")], 40, 3).classes;
  for (const { class: name, policies } of [diurnal, failing]) {
    const of = Object.fromEntries(policies.map((it) => [it.policy, it]));
    assert.deepEqual(Object.keys(of), Object.keys(POLICIES));
    const { planner, oracle, ...others } = of;
    const rates = JSON.stringify(policies.map((it) => [it.policy, it.hitRate]));
    assert.ok(planner.hitRate >= 0.95 * oracle.hitRate, `${name} ${rates}`);
    for (const it of Object.values(others)) assert.ok(planner.hitRate > it.hitRate, `${name} ${rates}`);
    assert.ok(planner.coverage95! > 0.92 && planner.coverage95! < 0.98, `${name} ${planner.coverage95}`);
    assert.ok(planner.regret < 0.1 && planner.hedgeRate <= 0.05);
    assert.ok(planner.poolShare < others["always-pool"].poolShare);
  }
  const { lostToOutage } = failing.policies.find((it) => it.policy === "planner")!;
  assert.ok(lostToOutage!.max <= 3, JSON.stringify(lostToOutage));
});

Deno.test("what the oracle foresees is what happens, while nobody else asks", () => {
  const [kind] = classOf("heavy-tail");
  const world = createWorld(kind, 1, 4);
  const foreseen: number[] = [];
  const results = simulate(world, () => ({
    choose({ asked, look }) {
      // Always the same place, so that nothing overtakes.
      const [option] = asked.options;
      foreseen.push(look(option).firstMs);
      return { option };
    },
  }));
  assert.ok(results.length > 100);
  results.forEach(({ firstMs }, i) =>
    assert.ok(Math.abs(firstMs - foreseen[i]) < 1e-6 || firstMs === foreseen[i])
  );
  assert.ok(results.some((it) => it.firstMs === Infinity), "some waited beyond their deadline");
});

Deno.test("worlds are drawn before the first decision, with all that they promise", () => {
  for (const kind of CLASSES) {
    const { asked, edges, slots, outages } = createWorld(kind, 20, 1);
    assert.ok(slots >= 1 && edges.length === 20);
    assert.ok(asked.every(({ at }, i) => at < HORIZON_MS && (i === 0 || at >= asked[i - 1].at)));
    const each = asked.length / 20;
    assert.ok(each > 140 && each < 300, `${kind.name}: ${each} questions an edge`);
    assert.equal(outages.length >= 2, kind.outages ?? false);
    assert.ok(asked.some((it) => it.privacy === "pixels-stay") && asked.some((it) => !it.options[0].vision));
    const stuck = asked.filter((it) => it.stallMs).length / asked.length;
    assert.ok(Math.abs(stuck - (kind.tails ?? 0)) < 0.02, `${stuck}`);
  }
});

Deno.test("the pool serves in the order of coming, and an outage empties it", () => {
  const world = { ...createWorld(classOf("pool-failure")[0], 4, 1), slots: 2 };
  const [{ from, to }] = world.outages;
  const pool = new SimulatedPool(world);
  pool.advance(1000);
  assert.deepEqual([500, 900, 100, 100].map((ms) => pool.take(1000, ms)), [1000, 1000, 1500, 1600]);
  pool.advance(2000);
  assert.deepEqual([pool.snapshot?.running, pool.snapshot?.waiting, pool.snapshot?.slots], [0, 0, 2]);
  pool.take(from - 1, 3600_000);
  assert.equal(pool.outageAt(from - 1), undefined);
  assert.equal(pool.outageAt(from - 1, from)?.from, from);
  assert.equal(pool.outageAt(from)?.to, to);
  pool.advance(to);
  assert.equal(pool.outageAt(to), undefined);
  assert.deepEqual([pool.startAt(to), pool.take(to, 1)], [to, to]);
});

Deno.test("events come in the order of their times; chance is even, normal and heavy as it says", () => {
  const [agenda, chance] = [new Agenda<string, number>(), new Chance(1, 2, 3)];
  const times = Array.from({ length: 500 }, () => chance.uniform());
  times.forEach((it, i) => agenda.push(it, "x", i));
  assert.deepEqual(times.map(() => agenda.pop()?.at), times.toSorted((a, b) => a - b));
  assert.deepEqual([agenda.pop(), agenda.nextAt], [undefined, Infinity]);
  const share = (of: () => boolean) => Array.from({ length: 20_000 }, of).filter(Boolean).length / 20_000;
  const near = (found: number, wanted: number) =>
    assert.ok(Math.abs(found - wanted) < 0.012, `${found} ${wanted}`);
  near(share(() => chance.uniform() < 0.3), 0.3);
  near(share(() => chance.normal() < 1.645), 0.95);
  near(share(() => chance.exponential() < 1), 1 - 1 / Math.E);
  near(share(() => chance.pareto(2) > 2), 0.25);
});

Deno.test("lateness is the worst of what was asked for, of its budget, 1 at most", () => {
  const of = (remaining: { firstMs?: number; totalMs?: number }, firstMs: number, totalMs: number) =>
    lateness({ ...createWorld(CLASSES[0], 1, 1).asked[0], remaining }, { firstMs, totalMs });
  assert.deepEqual([of({ firstMs: 10 }, 10, 99), of({ firstMs: 10 }, 15, 20)], [0, 0.5]);
  assert.deepEqual([of({ firstMs: 10, totalMs: 20 }, 9, 25), of({ totalMs: 20 }, 1, Infinity)], [0.25, 1]);
});

Deno.test("figures show every class and policy", () => {
  const { classes } = runSimulation(CLASSES.slice(0, 2), 2, 1);
  const bars = hitRates(classes);
  assert.equal(bars.match(/<title>/g)?.length, 2 * 6);
  assert.match(bars, /^<svg [\s\S]*<\/svg>\n$/);
  const lines = overTime(classes[0]);
  assert.equal(lines.match(/<polyline/g)?.length, 6);
  assert.doesNotMatch(bars + lines, /NaN|undefined|Infinity/);
});

Deno.test("what the real system is asked is drawn before, the same for the same seed, and its budgets lie where they are said to", () => {
  const trace = drawTrace(60, 1);
  assert.deepEqual(drawTrace(60, 1), trace);
  assert.notDeepEqual(drawTrace(60, 2), trace);
  assert.equal(trace.length, 7);
  const failing = trace.find((it) => it.name === "pool-failure")!.asked.map((it) => it.worker);
  assert.deepEqual(failing.filter((it, i) => it !== failing[i - 1]), [
    "well",
    "killed",
    "well",
    "stopped",
    "well",
  ]);
  const all = trace.flatMap((it) => it.asked);
  const share = (of: (it: RealAsked) => boolean) => all.filter(of).length / all.length;
  assert.ok(Math.abs(share((it) => it.of === "local") - 0.5) < 0.1);
  assert.ok(all.every((it) => it.slowness >= 1 && it.link.mbps > 0 && it.stallMs <= 4000));
  const quantiles = { firstP50Ms: 100, firstP95Ms: 150, totalP50Ms: 200, totalP95Ms: 300 };
  const budgets = [0, 0.5, 1].map((at) => budgetOf({ wants: "both", at }, quantiles));
  assert.deepEqual(budgets.map((it) => it.ttftMs), [100, 173, 300]);
  assert.deepEqual(budgets.map((it) => it.totalMs), [200, 346, 600]);
  assert.deepEqual(Object.keys(budgetOf({ wants: "first", at: 0 }, quantiles)), ["ttftMs"]);
});

Deno.test("intervals hold what they are of, and are those of blocks", () => {
  const chance = new Chance(3);
  const coins = Float64Array.from({ length: 800 }, () => Number(chance.uniform() < 0.3));
  const { value, low, high } = bootstrapped(coins);
  assert.ok(low < 0.3 && 0.3 < high && low < value && value < high);
  // Of 800 coins: 1.96 standard errors of 1.6 % to either side.
  assert.ok(high - low > 0.045 && high - low < 0.08, `${high - low}`);
  // Of 100 coins, each told eight times, nearly three times as wide.
  const told = Float64Array.from({ length: 800 }, (_, i) => coins[i >> 3]);
  const wide = bootstrapped(told);
  assert.ok(wide.high - wide.low > 0.13, `${wide.high - wide.low}`);
  const rows = Array.from(coins, (it): RealRow => ({
    class: "lan",
    tokens: 1,
    budget: {},
    answers: { planner: { met: true, route: "local" }, other: { met: it === 1, route: "pixels" } },
  }));
  const [other, planner] = realScores(rows, ["other", "planner"]);
  assert.deepEqual([planner.hitRate.low, planner.behind.high, planner.routes], [1, 0, { local: 800 }]);
  assert.ok(Math.abs(other.behind.value - (1 - value)) < 1e-9 && other.behind.low > 0.6);
});

Deno.test("a link takes its time, and leads nowhere where nobody listens", async () => {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    return new Response(`${(await request.bytes()).length}`);
  });
  const link = new Link(server.addr.port);
  const send = async (bytes: number) => {
    const since = performance.now();
    const said = await (await fetch(link.url, { method: "POST", body: new Uint8Array(bytes) })).text();
    assert.equal(said, `${bytes}`);
    return performance.now() - since;
  };
  link.shape = { rttMs: 40, mbps: 8 };
  assert.ok(await send(100) >= 39);
  assert.ok(await send(100_000) >= 139);
  link.stallMs = 200;
  assert.ok(await send(100) >= 239);
  assert.equal(link.stallMs, 0);
  link.shape = { rttMs: 0, mbps: 1000, downMbps: 0.008 };
  assert.ok(await send(100) >= 100, "a head of a hundred bytes");
  await server.shutdown();
  await assert.rejects(fetch(link.url), TypeError);
  link.close();
});
