import assert from "node:assert/strict";
import { mapped } from "../../lib/jobs/hooks.ts";

Deno.test("the pointers of RFC 6901 lead where it says", () => {
  const document = {
    foo: ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
  };
  const examples: [string, unknown][] = [
    ...([["/foo", ["bar", "baz"]], ["/foo/0", "bar"], ["/", 0], ["/a~1b", 1], ["/c%d", 2]] as [
      string,
      unknown,
    ][]),
    ...([["/e^f", 3], ["/g|h", 4], ["/i\\j", 5], ['/k"l', 6], ["/ ", 7], ["/m~0n", 8]] as [
      string,
      unknown,
    ][]),
  ];
  for (const [pointer, value] of examples) assert.deepEqual(mapped({ it: pointer }, document), { it: value });
  for (
    const pointer of ["/none", "/foo/2", "/foo/-", "/foo/00", "/foo/length", "/a", "/foo/0/0", "/__proto__"]
  ) {
    assert.throws(() => mapped({ it: pointer }, document), {
      code: "parameter_invalid",
      message: `Cannot map the webhook: expected a value at ${pointer}, found none`,
    });
  }
  for (const nothing of [null, 1, "text", undefined]) assert.throws(() => mapped({ it: "/a" }, nothing));
});

Deno.test("an item is made of pointers, text with pointers in it, and what stands as it is", () => {
  const event = { Records: [{ s3: { bucket: { name: "in" }, object: { key: "a/b.png", size: 7 } } }] };
  const template = {
    image: "https://{/Records/0/s3/bucket/name}.s3.example/{/Records/0/s3/object/key}",
    prompt: "caption en",
    note: "{size} {/Records/0/s3/object/size}",
    maxTokens: 20,
    deep: { "/not": "/touched" },
  };
  assert.deepEqual(mapped(template, event), {
    image: "https://in.s3.example/a/b.png",
    prompt: "caption en",
    note: "{size} 7",
    maxTokens: 20,
    deep: { "/not": "/touched" },
  });
  assert.throws(() => mapped({ it: "{/Records/0}" }, event), /expected text or a number at \/Records\/0/);
});
