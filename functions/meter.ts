/** How far a long command is, on the terminal. */

/** Milliseconds over which speed is told: what lies before says little about what is left. */
const WINDOW_MS = 5000;
const BAR = 24;

/** Told bytes done and bytes in all. */
export type Meter = (done: number, total: number) => void;

/** Whether the cursor stands behind a bar. */
let open = false;

/** Ends the line of a bar that did not come to its end, so that what went wrong has a line of its own. */
export function leaveMeter(): void {
  if (open) Deno.stderr.writeSync(new TextEncoder().encode("\n"));
  open = false;
}

/** A bar with share, speed and remaining time on stderr; undefined where that is no terminal. */
export function meter(): Meter | undefined {
  if (!Deno.stderr.isTerminal()) return undefined;
  const lines = meterLines();
  let shown = -Infinity;
  return (done, total) => {
    const now = performance.now();
    const line = lines(done, total, now);
    if (done < total && now - shown < 100) return;
    shown = now;
    open = done < total;
    Deno.stderr.writeSync(new TextEncoder().encode(`\r${line}\x1b[K${open ? "" : "\n"}`));
  };
}

/** The line of the meter at each moment; what was there at the first call does not count as speed. */
export function meterLines(): (done: number, total: number, nowMs: number) => string {
  const seen: { done: number; at: number }[] = [];
  return (done, total, at) => {
    if (done < (seen.at(-1)?.done ?? 0)) seen.length = 0; // something had to be done again
    seen.push({ done, at });
    while (seen.length > 2 && seen[1].at <= at - WINDOW_MS) seen.shift();
    const share = total ? done / total : 1;
    const full = Math.round(share * BAR);
    const perSecond = (done - seen[0].done) / (at - seen[0].at) * 1000;
    const known = perSecond > 0 && perSecond < Infinity;
    const parts = [
      `${"█".repeat(full)}${"░".repeat(BAR - full)} ${Math.floor(share * 100)} %`,
      `of ${size(total)}`,
      ...known ? [`${size(perSecond)}/s`, `${time((total - done) / perSecond)} left`] : [],
    ];
    return parts.join(" · ");
  };
}

/** Bytes as MB or GB. */
export function size(bytes: number): string {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

function time(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${(whole / 3600).toFixed(1)} h`;
}
