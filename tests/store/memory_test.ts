import { createMemoryStore } from "../../lib/store/memory.ts";
import { Clock, testBlobs, testQueue, testRecords } from "./suite.ts";

testRecords("memory", (use) => use(createMemoryStore().records));
testBlobs("memory", (use) => use(createMemoryStore().blobs));
testQueue("memory", (use) => {
  const clock = new Clock();
  return use({ queue: createMemoryStore({ now: clock.now }).queue("jobs"), clock });
});
