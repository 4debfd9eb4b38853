/** Bodies by schema: what zod finds wrong, in the words of this server; and forms, whose fields are all text. */

import * as z from "zod/mini";
import { describe, type Fields } from "./body.ts";
import { HttpError } from "./problem.ts";

/**
 * Checks a value against a schema. A schema's own message says what it expects; what was found is told here.
 *
 * @param place what holds the value, for messages: `Cannot read ${place}: …` where the value itself is wrong.
 * @throws {HttpError} for the first thing that is wrong: `body_invalid` for a wrong kind, `parameter_invalid` for a
 * value out of its range or a field that there is not, with its place, what was expected and what was found.
 */
export function read<T>(schema: z.ZodMiniType<T>, value: unknown, place = "the request"): T {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  // A misspelt name explains what is missing.
  const issue = result.error.issues.find((it) => it.code === "unrecognized_keys") ?? result.error.issues[0];
  const where = pathOf(issue.path) || place;
  if (issue.code === "unrecognized_keys") {
    const known = fieldsOf(issue.path.length ? undefined : schema);
    const expected = known ? `the fields ${known.join(", ")}` : "known fields only";
    throw wrong("parameter_invalid", expected, describe(issue.keys[0]));
  }
  const outOfRange = ["invalid_value", "too_small", "too_big"].includes(issue.code);
  throw wrong(outOfRange ? "parameter_invalid" : "body_invalid", issue.message, describe(issue.input));

  function wrong(code: "parameter_invalid" | "body_invalid", expected: string, found: string): HttpError {
    const message = `Cannot read ${where}: expected ${expected}, found ${found}`;
    return new HttpError({ code, message, ...issue.path.length && { field: where } });
  }
}

/**
 * The values of a body as its schema's kinds: a form's text becomes a number, a flag or, from JSON, an object where the
 * schema wants one and the text is one.
 */
export function valuesOf(fields: Fields, schema: z.ZodMiniObject): Record<string, unknown> {
  const values: [string, unknown][] = [...fields.values];
  if (fields.kind === "json") return Object.fromEntries(values);
  return Object.fromEntries(values.map(([name, value]) => {
    // Several file parts of one name are several pictures.
    if (name === "image" && Array.isArray(value) && !fields.values.has("images")) return ["images", value];
    const kind = Object.hasOwn(schema.shape, name) ? kindOf(schema.shape[name]) : undefined;
    if (kind === "number" && /^-?\d+(\.\d+)?([eE][-+]?\d+)?$/.test(String(value))) {
      return [name, Number(value)];
    }
    if (kind === "boolean" && (value === "true" || value === "false")) return [name, value === "true"];
    if (kind === "object" && typeof value === "string") return [name, parsed(value)];
    return [name, value];
  }));
}

/** What JSON text says; text that is none is left for its schema to refuse. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Names of an object schema's fields. */
function fieldsOf(schema: unknown): string[] | undefined {
  return schema instanceof z.ZodMiniObject ? Object.keys(schema.shape) : undefined;
}

/** The kind of a field that may be left out: `number`, `boolean`, `string`, `array` … */
function kindOf(schema: z.core.$ZodType): string {
  if (schema instanceof z.ZodMiniOptional) return kindOf(schema._zod.def.innerType);
  return schema instanceof z.ZodMiniLiteral ? typeof schema._zod.def.values[0] : schema._zod.def.type;
}

/** `messages[0].content`, as JavaScript would have it. */
function pathOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (text, key) =>
      typeof key === "number" ? `${text}[${key}]` : text ? `${text}.${String(key)}` : String(key),
    "",
  );
}

// Kinds that several bodies share.

/** Text, told apart from what JSON may hold instead of it. */
export function text(expected = "a string, which may be empty") {
  return z.string({ error: expected }).check(
    z.refine((it) => it.isWellFormed(), {
      error: "Unicode text (half a surrogate pair is none)",
      abort: true,
    }),
  );
}

/** A whole number within bounds, both included. */
export function whole(low: number, high = Number.MAX_SAFE_INTEGER) {
  const range = high === Number.MAX_SAFE_INTEGER ? `${low} or more` : `from ${low} to ${high}`;
  const error = `a whole number, ${range}`;
  return z.number({ error }).check(
    z.int({ error, abort: true }),
    z.gte(low, { error }),
    z.lte(high, { error }),
  );
}

/** A number within bounds, both included. */
export function between(low: number, high: number) {
  const error = `a number from ${low} to ${high}`;
  return z.number({ error }).check(z.gte(low, { error }), z.lte(high, { error }));
}

/** A number above 0, up to 1. */
export function share() {
  const error = "a number above 0, up to 1";
  return z.number({ error }).check(z.gt(0, { error }), z.lte(1, { error }));
}

/** One of several names. */
export function oneOf<const T extends readonly [string, ...string[]]>(...names: T) {
  return z.enum(names, { error: names.join(" or ") });
}

/** True or false. */
export function flag() {
  return z.boolean({ error: "true or false" });
}

/** A field that may be left out, with a line for the documentation. */
export function optional<T extends z.ZodMiniType>(schema: T, description: string) {
  return z.optional(schema).check(z.describe(description));
}
