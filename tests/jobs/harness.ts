/** Jobs whose items a test answers, on a store of its choice, in this process. */

import { consume } from "../../lib/jobs/consume.ts";
import { Jobs } from "../../lib/jobs/jobs.ts";
import { JobStore, type JobView } from "../../lib/jobs/job_store.ts";
import { Runner, type RunnerParts } from "../../lib/jobs/runner.ts";
import { Webhooks } from "../../lib/jobs/webhooks.ts";
import type { PullQueue, Store } from "../../lib/store/store.ts";

export const SECRET = `whsec_${btoa("0123456789abcdef0123456789abcdef")}`;

/** What stands in for the pipeline. */
export type Work = RunnerParts["work"];

/** Everything about the jobs of one store; `errors` gathers what an operator would be told. */
export function harness(
  store: Store<PullQueue>,
  work: Work,
  { post = () => Promise.reject(new Error("nobody listens")), keepMs = 1e9, now = Date.now }: {
    post?: ConstructorParameters<typeof Webhooks>[0]["post"];
    keepMs?: number;
    now?: () => number;
  } = {},
) {
  const errors: unknown[] = [];
  const onError = (error: unknown) => void errors.push(error);
  const queue = store.queue("webhooks");
  const secrets = [SECRET];
  const webhooks = new Webhooks({ records: store.records, queue, post, secrets, now, schedule: [10, 10] });
  const stored = new JobStore(store);
  const runner = new Runner({ jobs: stored, webhooks, work, onError, now, keepMs });
  const jobs = new Jobs(stored, now, true);
  return {
    jobs,
    runner,
    webhooks,
    errors,
    /** Works while `use` runs. */
    async working<T>(use: () => Promise<T>): Promise<T> {
      const stop = new AbortController();
      const options = { signal: stop.signal, onError, concurrency: 2 };
      const running = Promise.all([
        consume(store.queue("jobs"), runner.handle, options),
        consume(queue, webhooks.handle, options),
      ]);
      try {
        return await use();
      } finally {
        stop.abort();
        await running;
      }
    },
    /** The job once it has ended. */
    async ended(id: string): Promise<JobView> {
      for await (const _ of jobs.watch(id, -1, AbortSignal.timeout(20_000)));
      return (await jobs.get(id))!;
    },
  };
}
