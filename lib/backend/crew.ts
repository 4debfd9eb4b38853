/**
 * Who computes an operation: one thread, or several that share a memory and take parts of it as they come free.
 *
 * An operation is cut into tickets, large ones first. Everybody, the leading thread included, draws tickets until none
 * is left, so a thread that is late, asleep or not yet started costs nothing, and one that is slowed down gets less to
 * do. What a ticket covers never depends on who draws it, and no sum is split: the results are those of one thread.
 *
 * Idle threads spin for a while, because the next operation usually comes within microseconds, then sleep.
 */

import type { Kernels } from "./wasm_kernels.ts";
import { type PartName, PARTS } from "./wasm_parts.ts";

/** Runs operations cut in units. */
export interface Crew {
  readonly threads: number;
  /** Operations run so far. */
  readonly runs: number;
  /**
   * Runs units [0, units) of an operation and returns when all are done. `cost` is a guess in nanoseconds on one
   * thread: what is cheap is not shared out. `each`: at most so many tickets a thread, `TICKETS_EACH` by default.
   */
  run(part: PartName, args: readonly number[], units: number, cost: number, each?: number): void;
}

/** One thread: this one. */
export function alone(kernels: Kernels): Crew {
  let runs = 0;
  return {
    threads: 1,
    get runs() {
      return runs;
    },
    run(part, args, units) {
      runs++;
      PARTS[part](kernels, args, 0, units, 0);
    },
  };
}

/** What is cheaper than this is done before another thread has heard of it. */
export const SHARE_ABOVE_NS = 4000;
/** Sleepers are woken when so many times as much was, or is now, to be done without them. */
const WAKE = 10;
/** Least tickets that share an operation: drawing one and giving it back takes 0.1 to 0.2 µs. */
const LEAST = 2;
/** At most so many tickets a thread, where nobody asks for fewer. */
export const TICKETS_EACH = 8;
/** A thread without work sleeps after this long. */
const IDLE_MS = 2;
/** Looks at a word before the clock is read or the thread waits: some ten microseconds. */
const SPINS = 1000;
/** A waiting leader looks this often whether the others go on. */
const LOOK_MS = 100;

// Words of the control block; those that different threads write lie in cache lines of their own.
const LINE = 16;
/** Tickets left; below zero when more were asked for. */
const TICKETS = 0;
/** Tickets done. */
const DONE = LINE;
/** Counts the times sleepers were called. */
const CALL = 2 * LINE;
const SLEEPERS = 3 * LINE;
/** 1 while the leader sleeps until the others are done. */
const LEADER_SLEEPS = 4 * LINE;
/** 1 when the threads are to end. */
const STOP = 5 * LINE;
/** Length of the message of what went wrong, 0 for nothing. */
const FAILED = 6 * LINE;
/** Number of the operation, its part, tickets, units, and count of arguments; then the arguments. */
const [NUMBER, PART, DRAWN, UNITS, COUNT] = [0, 1, 2, 3, 4].map((it) => 7 * LINE + it);
const ARGUMENTS_BYTE = 8 * LINE * 4;
const MAX_ARGUMENTS = 64;
const MESSAGE_BYTE = ARGUMENTS_BYTE + MAX_ARGUMENTS * 8;
const MESSAGE_BYTES = 512;

const NAMES = Object.keys(PARTS) as PartName[];

/** Shared between the threads: the operation of the moment and who is how far. */
export class Control {
  readonly words: Int32Array;
  readonly args: Float64Array;
  readonly message: Uint8Array;

  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(MESSAGE_BYTE + MESSAGE_BYTES)) {
    this.words = new Int32Array(buffer, 0, ARGUMENTS_BYTE / 4);
    this.args = new Float64Array(buffer, ARGUMENTS_BYTE, MAX_ARGUMENTS);
    this.message = new Uint8Array(buffer, MESSAGE_BYTE);
  }

  /** Leaves what went wrong for the leader; the first one stays. */
  fail(error: unknown): void {
    const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    const bytes = new TextEncoder().encode(text).slice(0, MESSAGE_BYTES);
    if (Atomics.load(this.words, FAILED)) return;
    this.message.set(bytes);
    Atomics.store(this.words, FAILED, Math.max(bytes.length, 1));
  }

  /** What went wrong, if anything did. */
  failure(): string | undefined {
    const length = Atomics.load(this.words, FAILED);
    return length ? new TextDecoder().decode(this.message.slice(0, length)) : undefined;
  }

  /** Ends the threads that follow. */
  stop(): void {
    Atomics.store(this.words, STOP, 1);
    call(this.words);
  }

  get stopped(): boolean {
    return Atomics.load(this.words, STOP) === 1;
  }
}

function call(words: Int32Array): void {
  Atomics.add(words, CALL, 1);
  Atomics.notify(words, CALL);
}

/**
 * First unit of a ticket, of `tickets` in all. Sizes fall in a straight line down to one unit, so that threads end at
 * the same time whatever their speed.
 */
function firstUnit(ticket: number, tickets: number, units: number): number {
  const rest = 1 - ticket / tickets;
  return ticket + Math.round((units - tickets) * (1 - rest * rest));
}

/** The leading thread of several. */
export class Leader implements Crew {
  runs = 0;
  #broken: Error | undefined;
  /** Cost of what could have been shared out since the others fell asleep. */
  #missed = 0;

  /**
   * `stallMs`: how long a thread may hold a ticket before it is given up, and the crew with it. `shareAboveNs`: what is
   * cheaper is not shared out.
   */
  constructor(
    readonly threads: number,
    private readonly kernels: Kernels,
    private readonly control: Control,
    private readonly stallMs: number,
    private readonly shareAboveNs: number,
  ) {}

  run(part: PartName, args: readonly number[], units: number, cost: number, each = TICKETS_EACH): void {
    const { shareAboveNs, control: { words } } = this;
    this.#check();
    this.runs++;
    const sleepers = Atomics.load(words, SLEEPERS);
    const worthy = units > 1 && cost >= shareAboveNs && this.threads > 1;
    if (worthy) this.#missed = sleepers ? this.#missed + cost : 0;
    const wake = worthy && sleepers > 0 && this.#missed >= WAKE * shareAboveNs;
    if (!worthy || !(wake || sleepers < this.threads - 1)) {
      return PARTS[part](this.kernels, args, 0, units, 0);
    }
    const worth = Math.ceil(cost / Math.max(shareAboveNs / LEAST, 1));
    const tickets = Math.max(1, Math.min(units, each * this.threads, worth));
    words[PART] = NAMES.indexOf(part);
    words[DRAWN] = tickets;
    words[UNITS] = units;
    words[COUNT] = args.length;
    this.control.args.set(args);
    Atomics.store(words, DONE, 0);
    Atomics.add(words, NUMBER, 1);
    Atomics.store(words, TICKETS, tickets);
    if (wake) call(words);

    let error: unknown;
    for (let left = tickets; (left = Atomics.sub(words, TICKETS, 1)) > 0;) {
      const ticket = tickets - left;
      const [from, to] = [firstUnit(ticket, tickets, units), firstUnit(ticket + 1, tickets, units)];
      try {
        PARTS[part](this.kernels, args, from, to, 0);
      } catch (it) {
        error = it; // the others still write to the memory: wait for them first
      }
      Atomics.add(words, DONE, 1);
    }
    this.#wait(tickets);
    if (error !== undefined) throw error;
    this.#check();
  }

  #wait(tickets: number): void {
    const { words } = this.control;
    let [spins, seen, since] = [0, -1, 0];
    for (let done = 0; (done = Atomics.load(words, DONE)) < tickets;) {
      if (spins++ < SPINS) {
        pause();
        continue;
      }
      if (done !== seen) [seen, since] = [done, performance.now()];
      else if (performance.now() - since > this.stallMs) {
        this.control.fail(
          new Error(`A thread did not finish within ${this.stallMs} ms: ${done} of ${tickets} parts done`),
        );
        return;
      }
      Atomics.store(words, LEADER_SLEEPS, 1);
      Atomics.wait(words, DONE, done, Math.min(LOOK_MS, this.stallMs));
      Atomics.store(words, LEADER_SLEEPS, 0);
    }
  }

  /** What went wrong in one thread ends the crew: half an operation is in the memory. */
  #check(): void {
    if (!this.#broken) {
      if (!Atomics.load(this.control.words, FAILED) && !this.control.stopped) return;
      const why = this.control.failure() ?? "closed";
      this.#broken = new Error(`Cannot compute, the threads have ended: ${why}`);
    }
    throw this.#broken;
  }
}

/** Draws tickets until the crew is stopped. `thread` counts from 1; the leader is 0. */
export function follow(control: Control, kernels: Kernels, thread: number): void {
  const follower = new Follower(control, kernels, thread);
  while (awaitTickets(control.words)) follower.draw();
}

class Follower {
  #number = 0;
  #part: PartName = NAMES[0];
  #tickets = 0;
  #units = 0;
  #args: number[] = [];

  constructor(
    private readonly control: Control,
    private readonly kernels: Kernels,
    private readonly thread: number,
  ) {}

  draw(): void {
    const { words } = this.control;
    const left = Atomics.sub(words, TICKETS, 1);
    if (left <= 0) return;
    // From here to DONE the operation cannot end, so it is the one that the block describes.
    const number = Atomics.load(words, NUMBER);
    try {
      if (number !== this.#number) this.#read(number);
      const ticket = this.#tickets - left;
      const from = firstUnit(ticket, this.#tickets, this.#units);
      const to = firstUnit(ticket + 1, this.#tickets, this.#units);
      PARTS[this.#part](this.kernels, this.#args, from, to, this.thread);
    } catch (error) {
      this.control.fail(error);
    }
    Atomics.add(words, DONE, 1);
    if (Atomics.load(words, LEADER_SLEEPS)) Atomics.notify(words, DONE);
  }

  #read(number: number): void {
    const { words, args } = this.control;
    this.#number = number;
    this.#part = NAMES[words[PART]];
    this.#tickets = words[DRAWN];
    this.#units = words[UNITS];
    this.#args = [];
    for (let i = 0; i < words[COUNT]; i++) this.#args.push(args[i]);
  }
}

/** Waits for work, awake at first; false when the crew is stopped. */
function awaitTickets(words: Int32Array): boolean {
  let since = 0;
  for (let spins = 1;; spins++) {
    if (Atomics.load(words, TICKETS) > 0) return true;
    pause();
    if (spins % SPINS) continue;
    if (Atomics.load(words, STOP)) return false;
    const now = performance.now();
    since ||= now;
    if (now - since < IDLE_MS) continue;
    const calls = Atomics.load(words, CALL);
    Atomics.add(words, SLEEPERS, 1);
    // Whoever writes tickets then reads SLEEPERS; here it is the other way round, so one of the two sees the other.
    if (Atomics.load(words, TICKETS) <= 0 && !Atomics.load(words, STOP)) Atomics.wait(words, CALL, calls);
    Atomics.sub(words, SLEEPERS, 1);
    since = 0;
  }
}

/** Tells the processor that this is a spin loop, where the engine can. */
const pause: () => void = (Atomics as { pause?: () => void }).pause?.bind(Atomics) ?? (() => {});
