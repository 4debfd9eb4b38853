/// <reference lib="deno.worker" />
/** One of several threads that measure at once, whose number is its name: answers a limit's name with its rate. */

import { type LimitName, openLimits } from "./limits.ts";

const measure = openLimits(Number(self.name));
self.onmessage = ({ data: { name, budgetMs } }: MessageEvent<{ name: LimitName; budgetMs: number }>) => {
  self.postMessage(measure(name, budgetMs));
};
