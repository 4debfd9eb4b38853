import assert from "node:assert/strict";
import { CHECKPOINT, startDoor } from "./door.ts";
import { attack } from "./hostile.ts";
import { residentMb } from "./load.ts";

const PICTURE = await Deno.readFile(new URL("../fixtures/scene.png", import.meta.url));

Deno.test({
  name: "a thousand mutated requests get a 4xx with a message, and the server answers, and grows, as before",
  ignore: Deno.build.os !== "linux", // memory is read from /proc
  async fn() {
    const door = await startDoor({ MODEL: CHECKPOINT });
    const question = async () => {
      const body = new FormData();
      body.append("image", new Blob([PICTURE]), "a.png");
      body.append("prompt", "caption en");
      body.append("maxTokens", "8");
      const response = await fetch(`${door.url}/v1/generate`, { method: "POST", body });
      return (await response.json()).tokenIds;
    };
    try {
      const before = await question();
      await attack(door.url, { count: 200, seed: 7 });
      const settledMb = await residentMb(door.pid);
      const { statuses, wrong } = await attack(door.url, { count: 1000, seed: 8 });
      assert.deepEqual(wrong, []);
      assert.ok(statuses[400] > 300, JSON.stringify(statuses));
      assert.deepEqual(await question(), before);
      const grownMb = await residentMb(door.pid) - settledMb;
      assert.ok(grownMb < 150, `${grownMb.toFixed(0)} MB more after a thousand requests`);
      assert.equal(door.output().stderr, "");
    } finally {
      door.kill("SIGTERM");
      await door.status;
    }
  },
});
