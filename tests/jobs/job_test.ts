import assert from "node:assert/strict";
import {
  begin,
  cancel,
  finish,
  giveBack,
  isCurrent,
  isFinal,
  type Job,
  newJob,
  nextItem,
} from "../../lib/jobs/job.ts";

const job = (count: number) => newJob(count, { id: "job_1", createdAt: 1 });
const statuses = (it: Job) => [it.status, ...it.items.map((item) => item.status)].join(" ");

Deno.test("queued, running, done: the job with its first and last item", () => {
  let it = job(2);
  assert.equal(statuses(it), "queued queued queued");
  it = begin(it, nextItem(it)!);
  assert.equal(statuses(it), "running running queued");
  it = finish(it, 0, 5);
  assert.equal(statuses(it), "running done queued");
  it = finish(begin(it, nextItem(it)!), 1, 7, { code: "image_corrupt", message: "why" });
  assert.equal(statuses(it), "done done failed");
  assert.deepEqual([it.finishedAt, it.items[1].error], [7, { code: "image_corrupt", message: "why" }]);
  assert.equal(nextItem(it), undefined);
  const bad = finish(begin(job(1), 0), 0, 1, { code: "internal", message: "" });
  assert.equal(statuses(bad), "failed failed");
});

Deno.test("what ran when its worker died comes first again; what is given back counts or not", () => {
  const died = begin(finish(begin(job(3), 0), 0, 1), 1);
  assert.equal(nextItem(died), 1);
  const again = begin(died, 1);
  assert.deepEqual([again.items[1].attempts, isCurrent(again, 1, 2), isCurrent(again, 1, 1)], [
    2,
    true,
    false,
  ]);
  assert.deepEqual(
    [giveBack(again, 1, true).items[1].attempts, giveBack(again, 1, false).items[1].attempts],
    [1, 2],
  );
  assert.equal(nextItem(giveBack(again, 1, true)), 1);
});

Deno.test("cancelled: all that is not final, and nothing of it goes on", () => {
  const half = begin(finish(begin(job(3), 0), 0, 1), 1);
  const it = cancel(half, 9);
  assert.equal(statuses(it), "cancelled done cancelled cancelled");
  assert.deepEqual([it.finishedAt, nextItem(it), isCurrent(it, 1, 1)], [9, undefined, false]);
});

Deno.test("over random steps revisions are each given once, and what is final stays", () => {
  let seed = 1;
  const random = (n: number) => (seed = seed * 48271 % 2147483647) % n;
  for (let round = 0; round < 300; round++) {
    let it = job(1 + random(5));
    const seen = new Set<number>();
    while (!isFinal(it.status)) {
      const before = it;
      const index = nextItem(it)!;
      const open = it.items.findIndex((item) => item.status === "running");
      const step = random(6);
      if (step === 0 && random(4) === 0) it = cancel(it, 1);
      else if (open < 0) it = begin(it, index);
      else if (step < 3) it = finish(it, open, 1, step ? undefined : { code: "x", message: "" });
      else if (step < 5) it = giveBack(it, open, step === 3);
      else it = begin(it, open);
      const changed = it.items.filter((item, i) => item !== before.items[i]).map((item) => item.revision);
      if (it.statusRevision !== before.statusRevision) changed.push(it.statusRevision);
      for (const revision of changed) {
        assert.ok(!seen.has(revision) && revision > before.revision && revision <= it.revision);
        seen.add(revision);
      }
      before.items.forEach((item, i) => isFinal(item.status) && assert.equal(it.items[i], item));
      assert.ok(it.items.every((item) => item.attempts >= 0));
    }
    assert.ok(it.items.every((item) => isFinal(item.status)));
  }
});

Deno.test("an error of any length fits a record a hundred times", () => {
  for (const message of ["x".repeat(5000), "猫".repeat(5000), "\u0000".repeat(5000), "😀".repeat(999)]) {
    const { error } = finish(begin(job(1), 0), 0, 1, { code: "internal", message }).items[0];
    assert.ok(new TextEncoder().encode(JSON.stringify(error)).length < 350, String(error!.message.length));
    assert.ok(error!.message.isWellFormed() && error!.message.length > 20);
  }
});
