/** A disk without room, without a disk of its own: a limit on the size of files fails as late and as hard. */

import assert from "node:assert/strict";
import { join } from "@std/path";

/** Runs a program that can make no file longer than 1 MB; gives the JSON that it prints. */
export async function onFullDisk(program: string) {
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    await Deno.writeTextFile(file, program);
    const config = join(import.meta.dirname!, "../../deno.json");
    const { stdout, stderr } = await new Deno.Command("bash", {
      args: [
        "-c",
        `trap '' XFSZ; ulimit -f 1000; exec "$@"`,
        "bash",
        Deno.execPath(),
        ...["run", "-A", "--no-check", "--no-lock", "--config", config, file],
      ],
      env: { DENO_NO_UPDATE_CHECK: "1" },
    }).output();
    const text = new TextDecoder().decode(stdout);
    assert.ok(text, new TextDecoder().decode(stderr));
    return JSON.parse(text);
  } finally {
    await Deno.remove(file);
  }
}
