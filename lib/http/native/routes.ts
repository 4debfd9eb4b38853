/** The native routes: `POST /v1/{generate,caption,answer,detect,segment,ocr,classify}`. */

import { Hono } from "hono";
import type { Answering, Wire } from "../answering.ts";
import { readFields } from "../body.ts";
import { budgetOf, refuseBudget } from "../budget.ts";
import type { Env } from "../guard/exchange.ts";
import type { Outbound } from "../outbound.ts";
import { loadPictures } from "../pictures.ts";
import { type AnswerRoute, BODIES, readClassifyQuestion, readQuestion } from "../question.ts";

/** What body-reading routes are made with. */
export interface RouteParts {
  readonly answering: Answering;
  readonly maxBodyBytes: number;
  /** How pictures behind URLs are fetched; without it they are refused. */
  readonly outbound?: Outbound;
}

/** An answer's events as they are, named by their type. */
const NATIVE: Wire = {
  key: "native",
  async *write(answer) {
    for await (const event of answer) yield { event: event.type, data: JSON.stringify(event) };
  },
  failed: ({ code, message }) => ({ event: "error", data: JSON.stringify({ code, message }) }),
};

/** Routes that answer with the objects that the command line prints, or with their events. */
export function nativeRoutes({ answering, maxBodyBytes, outbound }: RouteParts): Hono<Env> {
  const routes = new Hono<Env>();
  for (const route of Object.keys(BODIES).filter((it) => it !== "classify") as AnswerRoute[]) {
    routes.post(`/v1/${route}`, async (c) => {
      const { model } = answering.pipeline();
      const asked = readQuestion(await readFields(c.req.raw, maxBodyBytes), route);
      const timed = { ...asked.question, ...budgetOf(c, asked.question.budget) };
      const images = await loadPictures(asked.pictures, outbound, { signal: c.req.raw.signal });
      const question = { images, ...timed };
      const { stream = /\btext\/event-stream\b/i.test(c.req.header("accept") ?? "") } = asked;
      if (stream) return await answering.stream(c, question, NATIVE);
      const answer = await answering.whole(c, question);
      return c.json({ model: model.name, ...answer }, 200, { "cache-control": "no-store" });
    });
  }
  routes.get(
    "/v1/planner",
    (c) => c.json(answering.pipeline().planner(), 200, { "cache-control": "no-store" }),
  );
  routes.post("/v1/classify", async (c) => {
    const { model } = answering.pipeline();
    refuseBudget(c);
    const asked = readClassifyQuestion(await readFields(c.req.raw, maxBodyBytes));
    const images = await loadPictures(asked.pictures, outbound, { signal: c.req.raw.signal });
    const found = await answering.run(
      c,
      (pipeline, signal) => pipeline.classify({ images, ...asked.question }, signal),
    );
    return c.json({ model: model.name, ...found }, 200, { "cache-control": "no-store" });
  });
  return routes;
}
