/**
 * Discrete events: every edge of a world answers its questions by a policy, and all share the pool.
 *
 * For every policy alike: an edge computes one question at a time, in the order they came; whose deadline has passed
 * before its turn is not begun, at the edge or in the pool; where the pool refuses or breaks off, or says nothing for
 * a second although it has the question, the edge answers itself if there is still time; a late answer is given
 * nevertheless. Policies learn of an answer when it has ended, and of the
 * pool by what it announces every two seconds.
 */

import type { Actual, Estimate } from "../../../lib/schedule/cost_model.ts";
import type { Option, Plan } from "../../../lib/schedule/planner.ts";
import { Agenda } from "./agenda.ts";
import { SimulatedPool, type Snapshot } from "./pool.ts";
import { type Asked, type Edge, edgeWork, type Outage, poolWork, transfer, type World } from "./world.ts";

/** What a policy says; without an option the question is refused. */
export interface Decision {
  readonly option?: Option;
  readonly estimate?: Estimate;
  readonly plan?: Plan;
}

/** One try to answer a question. */
export interface Attempt {
  readonly question: Question;
  readonly option: Option;
  readonly estimate?: Estimate;
  readonly begunAt: number;
  /** Whether the pool took it. */
  accepted: boolean;
  firstAt: number;
  endAt: number;
  over: boolean;
  actual: Actual;
  /** Where it was given up: what it would have taken at least. */
  leastMs: number;
  /** Whether it met an outage. */
  lost: boolean;
}

/** A question while it is answered. */
export interface Question {
  readonly asked: Asked;
  readonly index: number;
  decision: Decision;
  readonly attempts: Attempt[];
  hedged: boolean;
  winner?: Attempt;
}

/** What a policy may look at when it decides. */
export interface View {
  readonly asked: Asked;
  /** What the edge thinks how long it is busy. */
  readonly edgeWaitMs: number;
  readonly pool: Snapshot | undefined;
  readonly now: number;
  /** What would really happen; only for the oracle, and to judge others. */
  look(option: Option): Times;
}

/** From the question to the first token and to the end of its answer, milliseconds. */
export interface Times {
  readonly firstMs: number;
  readonly totalMs: number;
}

/** Decides for one edge. */
export interface Policy {
  choose(view: View): Decision;
  /** Whether a second route may be begun now. */
  mayHedge?(plan: Plan): boolean;
  /** What is expected of a route that is taken because another broke. */
  expect?(option: Option, view: View): Estimate;
  answered?(attempt: Attempt, now: number): void;
  /** No first token came. @param broken whether the pool refused, broke off or was silent. */
  gaveUp?(attempt: Attempt, broken: boolean, now: number): void;
}

/** How one question went. */
export interface Result extends Times {
  readonly asked: Asked;
  readonly met: boolean;
  /** Missed, although the edge or the pool could have made it when it was decided. */
  readonly avoidable: boolean;
  readonly decision: Decision;
  readonly hedged: boolean;
  /** Whether the P95 of the chosen route held; undefined where nobody knows. */
  readonly covered?: boolean;
  /** Whether the chosen route led into an outage. */
  readonly lost: boolean;
  /** Whether the pool worked on it. */
  readonly pooled: boolean;
}

/** Work in an edge's line. */
interface Turn {
  readonly from: number;
  readonly to: number;
  readonly expectedMs: number;
}

/** An edge's line. */
class Line {
  #turns: Turn[] = [];
  /** Of what the calibration says, as lately seen. */
  #factor = 1;

  constructor(private readonly edge: Edge) {}

  /** When a question that comes now would have its turn. */
  startAt(now: number): number {
    return Math.max(now, this.#turns.at(-1)?.to ?? 0);
  }

  take(from: number, ms: number, calibratedMs: number): void {
    this.#turns.push({ from, to: from + ms, expectedMs: calibratedMs * this.#factor });
  }

  /** A cancelled question leaves, if nobody is behind it; otherwise its turn passes unused. */
  leave(from: number, now: number): void {
    const last = this.#turns.at(-1);
    if (last?.from !== from || last.to <= now) return;
    this.#turns.pop();
    if (from < now) this.#turns.push({ ...last, to: now });
  }

  /** What the edge thinks how long it is busy: it knows what waits, not how long that will take. */
  expectedMs(now: number): number {
    let done = 0;
    while (done < this.#turns.length && this.#turns[done].to <= now) done++;
    for (const { from, to, expectedMs } of this.#turns.splice(0, done)) {
      this.#factor *= ((to - from) / expectedMs) ** 0.3;
    }
    return this.#turns.reduce(
      (sum, { from, expectedMs }) =>
        sum + (from > now ? expectedMs : Math.max(expectedMs - (now - from), expectedMs / 10)),
      0,
    );
  }

  calibratedMs({ vision, decode, pixels, prefix, tokens }: Option): number {
    const { edge } = this.edge.calibration;
    const visionMs = vision === "edge" ? edge.vision.perUnitMs * pixels : 0;
    if (decode !== "edge") return visionMs;
    return visionMs + edge.prefill.perUnitMs * prefix + edge.step.perUnitMs * tokens;
  }
}

type Happening = "sent" | "first" | "end" | "broken" | "late" | "hedge";

/** Plays a world under a policy. */
export function simulate(world: World, policyOf: (edge: Edge, index: number) => Policy): Result[] {
  const policies = world.edges.map(policyOf);
  const lines = world.edges.map((it) => new Line(it));
  const pool = new SimulatedPool(world);
  const agenda = new Agenda<Happening, Attempt>();
  const results: Result[] = new Array(world.asked.length);
  const avoidable = new Uint8Array(world.asked.length);

  let next = 0;
  while (true) {
    const asked = world.asked[next];
    if (asked && asked.at <= agenda.nextAt) {
      pool.advance(asked.at);
      arrive({ asked, index: next++, decision: {}, attempts: [], hedged: false });
    } else {
      const event = agenda.pop();
      if (!event) return results;
      pool.advance(event.at);
      happen(event.what, event.whom, event.at);
    }
  }

  function arrive(question: Question): void {
    const { asked, index } = question;
    const view = viewOf(asked, asked.at);
    avoidable[index] = Number(allowed(asked).some((it) => !lateness(asked, view.look(it))));
    const decision = policies[asked.edge].choose(view);
    question.decision = decision;
    const { option, estimate, plan } = decision;
    if (!option) return finish(question);
    const attempt = begin(question, option, estimate, asked.at);
    if (plan?.hedge) agenda.push(asked.at + plan.hedge.afterMs, "hedge", attempt);
  }

  function viewOf(asked: Asked, now: number): View {
    return {
      asked,
      now,
      edgeWaitMs: lines[asked.edge].expectedMs(now),
      pool: pool.snapshot,
      look: (option) => look(asked, option, now),
    };
  }

  function look(asked: Asked, option: Option, now: number): Times {
    const edge = world.edges[asked.edge];
    let at = option.decode === "edge" || option.vision === "edge" ? lines[asked.edge].startAt(now) : now;
    if (at > deadline(asked)) return { firstMs: Infinity, totalMs: Infinity };
    const own = edgeWork(edge, asked, at);
    if (option.vision === "edge") at += own.visionMs;
    const { prefillMs, stepMs, visionMs } = option.decode === "edge" ? own : poolWork(asked);
    if (option.decode === "edge") at += prefillMs;
    else {
      const sent = at + transfer(edge, asked, option.uploadBytes, at) - edge.link.rttMs / 2;
      const start = pool.startAt(sent);
      const first = start + prefillMs + (option.vision === "pool" ? visionMs : 0);
      const lost = pool.outageAt(sent, first + (asked.tokens - 1) * stepMs);
      if (lost || start > deadline(asked)) return { firstMs: Infinity, totalMs: Infinity };
      at = first + edge.link.rttMs / 2;
    }
    return { firstMs: at - asked.at, totalMs: at - asked.at + (asked.tokens - 1) * stepMs };
  }

  function begin(question: Question, option: Option, estimate: Estimate | undefined, now: number): Attempt {
    const attempt: Attempt = {
      question,
      option,
      estimate,
      begunAt: now,
      accepted: false,
      firstAt: Infinity,
      endAt: Infinity,
      over: false,
      actual: {},
      leastMs: 0,
      lost: false,
    };
    question.attempts.push(attempt);
    const { asked } = question;
    const edge = world.edges[asked.edge];
    const line = lines[asked.edge];
    let at = now;
    if (option.decode === "edge" || option.vision === "edge") {
      at = line.startAt(now);
      if (at > deadline(asked)) {
        agenda.push(Math.max(now, deadline(asked)), "late", attempt);
        return attempt;
      }
      const { visionMs, prefillMs, stepMs } = edgeWork(edge, asked, at);
      const decodeMs = option.decode === "edge" ? prefillMs + (asked.tokens - 1) * stepMs : 0;
      const seenMs = option.vision === "edge" ? visionMs : 0;
      line.take(at, seenMs + decodeMs, line.calibratedMs(option));
      attempt.actual = { ...option.vision && { visionMs }, ...decodeMs && { prefillMs, stepMs } };
      if (option.decode === "edge") {
        attempt.firstAt = at + seenMs + prefillMs;
        attempt.endAt = at + seenMs + decodeMs;
        agenda.push(attempt.firstAt, "first", attempt);
        return attempt;
      }
      at += seenMs;
    }
    const transferMs = transfer(edge, asked, option.uploadBytes, at);
    attempt.actual = { ...attempt.actual, transferMs };
    agenda.push(at + transferMs - edge.link.rttMs / 2, "sent", attempt);
    return attempt;
  }

  function happen(what: Happening, attempt: Attempt, now: number): void {
    const { question } = attempt;
    const { asked } = question;
    const policy = policies[asked.edge];
    if (what === "hedge") return hedge(attempt, now);
    if (attempt.over) return;
    if (what === "sent") return arriveAtPool(attempt, now);
    if (what === "first") {
      if (question.winner) return;
      question.winner = attempt;
      for (const it of question.attempts) if (it !== attempt && !it.over) cancel(it, now);
      agenda.push(attempt.endAt, "end", attempt);
      return;
    }
    attempt.over = true;
    if (what === "end") {
      const [firstMs, totalMs] = [attempt.firstAt - attempt.begunAt, attempt.endAt - attempt.begunAt];
      attempt.actual = { ...attempt.actual, firstMs, totalMs };
      policy.answered?.(attempt, now);
      return finish(question);
    }
    attempt.leastMs = Math.max(now, deadline(asked)) - attempt.begunAt;
    policy.gaveUp?.(attempt, what === "broken", now);
    if (question.attempts.some((it) => !it.over)) return;
    const local = asked.options.find((it) => it.decode === "edge")!;
    if (attempt.option.decode === "edge" || now >= deadline(asked)) return finish(question);
    begin(question, local, policy.expect?.(local, viewOf(asked, now)), now);
  }

  function arriveAtPool(attempt: Attempt, now: number): void {
    const { asked } = attempt.question;
    const { rttMs } = world.edges[asked.edge].link;
    const away = pool.outageAt(now);
    if (away) {
      attempt.lost = true;
      return agenda.push(now + noticedAfterMs(away, rttMs), "broken", attempt);
    }
    if (pool.startAt(now) > deadline(asked)) return agenda.push(now + rttMs / 2, "late", attempt);
    const { visionMs, prefillMs, stepMs } = poolWork(asked);
    const seenMs = attempt.option.vision === "pool" ? visionMs : 0;
    const serviceMs = seenMs + prefillMs + (asked.tokens - 1) * stepMs;
    const start = pool.take(now, serviceMs);
    const breaks = pool.outageAt(now, start + serviceMs);
    if (breaks) {
      attempt.lost = true;
      return agenda.push(breaks.from + noticedAfterMs(breaks, rttMs), "broken", attempt);
    }
    attempt.accepted = true;
    attempt.actual = {
      ...attempt.actual,
      ...seenMs && { visionMs },
      queueMs: start - now,
      prefillMs,
      stepMs,
    };
    attempt.firstAt = start + seenMs + prefillMs + rttMs / 2;
    attempt.endAt = start + serviceMs + rttMs / 2;
    agenda.push(attempt.firstAt, "first", attempt);
  }

  function hedge(first: Attempt, now: number): void {
    const { question } = first;
    const { asked, decision, winner, attempts } = question;
    const { plan } = decision;
    if (winner || first.over || attempts.length > 1 || !plan?.hedge) return;
    if (!policies[asked.edge].mayHedge?.(plan)) return;
    question.hedged = true;
    begin(question, plan.hedge.option, plan.hedge.estimate, now);
  }

  function cancel(attempt: Attempt, now: number): void {
    const { asked } = attempt.question;
    attempt.over = true;
    if (attempt.option.decode === "edge" && attempt.endAt < Infinity) {
      const { actual: { visionMs = 0, prefillMs = 0 }, firstAt } = attempt;
      lines[asked.edge].leave(firstAt - visionMs - prefillMs, now);
    }
    attempt.leastMs = now - attempt.begunAt;
    policies[asked.edge].gaveUp?.(attempt, false, now);
  }

  function finish(question: Question): void {
    const { asked, index, decision, winner, attempts } = question;
    const ended = winner?.endAt ?? Infinity;
    const times = { firstMs: (winner?.firstAt ?? Infinity) - asked.at, totalMs: ended - asked.at };
    const met = lateness(asked, times) === 0;
    const [chosen] = attempts;
    results[index] = {
      asked,
      ...times,
      met,
      avoidable: !met && avoidable[index] === 1,
      decision,
      hedged: question.hedged,
      covered: chosen && coverage(chosen, asked),
      lost: chosen?.lost ?? false,
      pooled: attempts.some((it) => it.accepted),
    };
  }
}

/** Whether the P95 of an attempt held: of the first token where that was wanted, otherwise of the whole. */
function coverage({ estimate, actual, question, begunAt, firstAt, lost }: Attempt, asked: Asked) {
  if (!estimate || estimate.firstP95Ms === Infinity) return undefined;
  if (lost) return false;
  const wantsFirst = asked.remaining.firstMs !== undefined;
  const p95 = wantsFirst ? estimate.firstP95Ms : estimate.totalP95Ms;
  const known = wantsFirst ? actual.firstMs : actual.totalMs;
  if (known !== undefined) return known <= p95;
  // It was given up: how long it would have taken, nobody knows; that it would have been longer than it was.
  const until = question.winner?.firstAt ?? deadline(asked);
  if (firstAt < Infinity && wantsFirst) return firstAt - begunAt <= p95;
  return until - begunAt > p95 ? false : undefined;
}

/** Options that a question's privacy allows. */
export function allowed({ options, privacy }: Asked): Option[] {
  return options.filter((it) => privacy === "any" || it.leaves !== "pixels");
}

/** Who refuses says so; who says nothing is given up after a second. */
function noticedAfterMs({ kind }: Outage, rttMs: number): number {
  return kind === "refusing" ? rttMs / 2 : rttMs + 1000;
}

/** When an answer has to have begun. */
function deadline({ at, remaining: { firstMs = Infinity, totalMs = Infinity } }: Asked): number {
  return at + Math.min(firstMs, totalMs);
}

/** By how much of its budget an answer is late: 0 when it is in time, 1 at most. */
export function lateness({ remaining }: Asked, { firstMs, totalMs }: Times): number {
  const first = remaining.firstMs === undefined ? 0 : firstMs / remaining.firstMs - 1;
  const total = remaining.totalMs === undefined ? 0 : totalMs / remaining.totalMs - 1;
  return Math.min(1, Math.max(0, first, total));
}
