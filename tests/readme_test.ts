/**
 * Every command in the README runs, and prints what the README shows. Times differ from machine to machine and are
 * masked; a line of three dots stands for any lines.
 */

import assert from "node:assert/strict";
import { type Door, startDoor } from "./doors/door.ts";

const ROOT = new URL("..", import.meta.url).pathname;
const DENO = "npx -y deno@2.9.6";

interface Shown {
  readonly command: string;
  /** The block of output after it, if any. */
  readonly output?: string;
}

/** Commands in `sh` blocks, each with the `text` block that follows the block it ends. */
function shown(markdown: string): Shown[] {
  const found: Shown[] = [];
  for (const [, language, body] of markdown.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)) {
    if (language === "text" && found.length) found.push({ ...found.pop()!, output: body });
    if (language === "sh") {
      for (const line of body.replaceAll("\\\n", " ").split("\n")) {
        const command = line.replace(/(^|\s)#.*$/, "").trim();
        if (command) found.push({ command });
      }
    }
  }
  return found;
}

const README = shown(Deno.readTextFileSync(`${ROOT}README.md`));
const curl = await new Deno.Command("curl", { args: ["--version"] }).output().then(() => true, () => false);

/** Times, rates and what follows from the machine, as one sign. */
function masked(text: string): string[] {
  return text.trim().split("\n").map((line) =>
    line.trimEnd().replaceAll(/(?<="logprob":)[^,}]+|\d+(\.\d+)?(?= ?ms\b| ?s\b)|\d+\.\d+/g, "#")
  );
}

function assertShown(output: string, wanted: string): void {
  const pattern = masked(wanted).map((line) => line.trim() === "..." ? "[\\s\\S]*" : RegExp.escape(line))
    .join("\n");
  assert.match(masked(output).join("\n"), new RegExp(`^${pattern}$`));
}

async function run(command: string): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command("sh", { args: ["-c", command], cwd: ROOT })
    .output();
  assert.equal(code, 0, `${command}\n${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

Deno.test("the README's first commands are start, a curl that streams, and test", () => {
  assert.equal(README[0].command, `${DENO} task start`);
  assert.match(README[1].command, /^curl -N /);
  assert.ok(README.some(({ command }) => command === `${DENO} task test`));
});

for (const { command, output } of README.filter((it) => it.command.startsWith(`${DENO} task `))) {
  const [task] = command.slice(`${DENO} task `.length).split(" ");
  if (["start", "test", "bench", "ok"].includes(task)) continue; // start: below; the others are how this runs
  Deno.test(`README: ${command}`, async () => {
    const printed = await run(command.replace(DENO, `"${Deno.execPath()}"`).replace(" task ", " task -q "));
    if (output) assertShown(printed, output);
  });
}

const calls = README.filter(({ command }) => command.startsWith("curl "));
Deno.test({
  name: `README: ${calls.length} curl lines against a running server${
    curl ? "" : " (skipped: no curl here)"
  }`,
  ignore: !curl,
  async fn(t) {
    const door: Door = await startDoor({});
    try {
      for (const { command, output } of calls) {
        await t.step(command, async () => {
          const printed = await run(
            command.replace("http://localhost:8000", door.url).replace("curl ", "curl -sS "),
          );
          if (output) assertShown(printed, output);
        });
      }
    } finally {
      door.kill("SIGTERM");
      await door.status;
    }
  },
});

Deno.test("README: every task it names exists, and no other command is shown", () => {
  const { tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  for (const { command } of README) {
    const task = command.match(/^(?:[A-Z_]+=\S+ )*npx -y deno@2\.9\.6 task (\S+)/)?.[1];
    assert.ok(command.startsWith("curl ") || command.startsWith("git ") || (task && task in tasks), command);
  }
});
