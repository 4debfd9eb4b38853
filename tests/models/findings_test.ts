/** The tables of models/tiny/findings.md are those of its results, and are made anew without what is written under them. */

import assert from "node:assert/strict";

const TINY = new URL("../../models/tiny/", import.meta.url).pathname;
const WRITTEN = await Deno.readTextFile(`${TINY}findings.md`);

const python = await new Deno.Command("python3", { args: ["--version"] }).output().then(
  () => true,
  () => false,
);

/** What becomes of a file; and what was said, where it was refused. */
async function put(text: string): Promise<{ text: string; said?: string }> {
  const path = await Deno.makeTempFile({ suffix: ".md" });
  await Deno.writeTextFile(path, text);
  const script = "import sys, tables; tables.put(tables.collect('runs/findings.json'), sys.argv[1])";
  const { success, stderr } = await new Deno.Command("python3", {
    args: ["-c", script, path],
    cwd: TINY,
    env: { PYTHONDONTWRITEBYTECODE: "1" },
  }).output();
  const after = await Deno.readTextFile(path);
  await Deno.remove(path);
  return { text: after, ...!success && { said: new TextDecoder().decode(stderr) } };
}

Deno.test({
  name: "tables that are put into a file replace those between its marks, and not a word beside them" +
    (python ? "" : " (skipped: no python3)"),
  ignore: !python,
  async fn() {
    assert.deepEqual(await put(WRITTEN), { text: WRITTEN });
    const stale = WRITTEN.replace("| 78.5 ± 1.1 |", "| 12.3 |").replace("37 trainings on", "1 training on");
    assert.notEqual(stale, WRITTEN);
    assert.deepEqual(await put(stale), { text: WRITTEN });
    const written = WRITTEN.replace("**Not reproduced.** Bars", "**Another word.** Bars") +
      "And a last one.\n";
    assert.deepEqual(await put(written), { text: written });
    for (const mark of ["<!-- table 3 -->\n", "<!-- end -->\n\n**Reproduced** for boxes"]) {
      const broken = WRITTEN.replace(mark, "");
      const { text, said } = await put(broken);
      assert.equal(text, broken);
      assert.match(said!, /expected <!-- table 3 --> and <!-- end --> once, found 0/);
    }
  },
});
