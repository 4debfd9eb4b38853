/** OpenAPI 3.1 of the whole service, made from the schemas that its routes read with. */

import * as z from "zod/mini";
import { EMBEDDINGS } from "../native/embeddings.ts";
import { CHAT } from "../openai/chat.ts";
import { isOpenAi } from "../problem.ts";
import { BODIES } from "../question.ts";
import {
  ANSWER,
  CLASSIFICATION,
  COMPLETION,
  EMBEDDED,
  MODEL,
  MODELS,
  OPENAI_ERROR,
  PLANNER,
  PROBLEM,
} from "./answers.ts";

/** One route, for the document. */
export interface Operation {
  readonly method: "get" | "post" | "put" | "delete";
  /** With `{name}` for what varies. */
  readonly path: string;
  readonly summary: string;
  /** What it reads, if anything. */
  readonly body?: z.ZodMiniType;
  /** Whether the body may be a form, whose file parts are pictures. */
  readonly form?: boolean;
  /** What it answers; without a schema, text of that media type. */
  readonly answer: z.ZodMiniType | string;
  /** The status of that, 200 by default. */
  readonly status?: number;
  /** Whether it can answer as server-sent events. */
  readonly events?: boolean;
  /** Whether it wants an API key where there are any. */
  readonly open?: boolean;
}

const task = (name: keyof typeof BODIES, summary: string): Operation => ({
  method: "post",
  path: `/v1/${name}`,
  summary,
  body: BODIES[name],
  form: true,
  answer: name === "classify" ? CLASSIFICATION : ANSWER,
  events: name !== "classify",
});

/** The routes of this room. */
const OPERATIONS: readonly Operation[] = [
  task("generate", "Answer a prompt in PaliGemma's own words"),
  task("caption", "Describe a picture"),
  task("answer", "Answer a question about a picture"),
  task("detect", "Boxes around things"),
  task("segment", "Boxes and masks of things"),
  task("ocr", "Read the text in a picture"),
  task("classify", "How likely each of several labels is"),
  {
    method: "post",
    path: "/v1/embeddings/image",
    summary: "The numbers of pictures, as the decoder or the projector would see them",
    body: EMBEDDINGS,
    form: true,
    answer: EMBEDDED,
  },
  {
    method: "post",
    path: "/v1/chat/completions",
    summary: "OpenAI's chat, for one prompt about pictures",
    body: CHAT,
    answer: COMPLETION,
    events: true,
  },
  {
    method: "get",
    path: "/v1/planner",
    summary: "What the planner expects of each route, and what came of the last answers",
    answer: PLANNER,
  },
  { method: "get", path: "/v1/models", summary: "What is loaded", answer: MODELS },
  { method: "get", path: "/v1/models/{name}", summary: "One model", answer: MODEL },
  {
    method: "get",
    path: "/health",
    summary: "200 when a model is loaded",
    answer: "application/json",
    open: true,
  },
  { method: "get", path: "/metrics", summary: "Numbers for Prometheus", answer: "text/plain" },
];

/** The document, with `more` routes of other rooms. */
export function openApiDocument(more: readonly Operation[] = []) {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const operation of [...OPERATIONS, ...more]) {
    (paths[operation.path] ??= {})[operation.method] = described(operation);
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "PaliGemma Edge",
      version: "1",
      description: "Pictures and a prompt in, text, boxes and masks out.",
    },
    servers: [{ url: "/" }],
    security: [{}, { key: [] }],
    paths,
    components: { securitySchemes: { key: { type: "http", scheme: "bearer" } } },
  };
}

function described({ method, path, summary, body, form, answer, status = 200, events, open }: Operation) {
  const error = isOpenAi(path)
    ? content("application/json", schemaOf(OPENAI_ERROR))
    : content("application/problem+json", schemaOf(PROBLEM));
  const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
  return {
    summary,
    operationId: `${method === "post" ? "" : `${method}_`}${
      path.replace(/^\/(v1\/)?/, "").replaceAll(/\W+/g, "_").replace(/_$/, "")
    }`,
    ...names.length && {
      parameters: names.map((name) => ({ name, in: "path", required: true, schema: { type: "string" } })),
    },
    ...open && { security: [] },
    ...body && {
      requestBody: {
        required: true,
        content: {
          ...content("application/json", schemaOf(body)),
          ...form && content("multipart/form-data", asForm(schemaOf(body))),
        },
      },
    },
    responses: {
      [status]: {
        description: summary,
        content: {
          ...typeof answer === "string" ? content(answer, {}) : content("application/json", schemaOf(answer)),
          ...events && content("text/event-stream", { type: "string" }),
        },
      },
      "4XX": { description: "The caller's mistake", content: error },
      "5XX": { description: "The server's; a 503 tells in Retry-After when to come back", content: error },
    },
  };
}

function content(type: string, schema: unknown) {
  return { [type]: { schema } };
}

type JsonSchema = z.core.JSONSchema.BaseSchema;

function schemaOf(schema: z.ZodMiniType): JsonSchema {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" });
  return rest;
}

/** Pictures are files in a form. */
function asForm(schema: JsonSchema): JsonSchema {
  const file = { type: "string", contentMediaType: "application/octet-stream" } as const;
  const { images: _, ...properties } = schema.properties ?? {};
  return { ...schema, properties: { ...properties, image: { type: "array", items: file } } };
}
