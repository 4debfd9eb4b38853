/** The routes that OpenAI's clients call: `POST /v1/chat/completions` and `GET /v1/models`. */

import { Hono } from "hono";
import type { AnswerEvent, ModelInfo } from "../../types.ts";
import { readJson } from "../body.ts";
import { budgetOf } from "../budget.ts";
import type { Env } from "../guard/exchange.ts";
import type { RouteParts } from "../native/routes.ts";
import { loadPictures } from "../pictures.ts";
import { HttpError } from "../problem.ts";
import { readChat } from "./chat.ts";
import { chunks, completion } from "./completion.ts";
import { untilStop } from "./stop.ts";

type Token = Extract<AnswerEvent, { type: "token" }>;

/** Both routes, in OpenAI's shapes, errors included. */
export function openAiRoutes({ answering, maxBodyBytes, outbound }: RouteParts): Hono<Env> {
  const routes = new Hono<Env>();

  routes.post("/v1/chat/completions", async (c) => {
    const { model } = answering.pipeline();
    const chat = readChat(await readJson(c.req.raw, maxBodyBytes));
    checkModel(chat.model, model);
    const timed = { ...chat.question, ...budgetOf(c, chat.question.budget) };
    const images = await loadPictures(chat.pictures, outbound, {
      name: "image_url",
      signal: c.req.raw.signal,
    });
    const question = { images, ...timed };
    if (chat.stream) return await answering.stream(c, question, chunks(chat));
    const tokens: Token[] = [];
    const answer = await answering.whole(c, question, async function* (events, enough) {
      for await (const event of untilStop(events, chat.stop, enough)) {
        if (event.type === "token") tokens.push(event);
        yield event;
      }
    });
    return c.json(completion(answer, tokens, model, { ...chat, question: timed }), 200, {
      "cache-control": "no-store",
    });
  });

  routes.get("/v1/models", (c) => c.json({ object: "list", data: answering.models().map(modelObject) }));
  routes.get("/v1/models/:name", (c) => {
    const { model } = answering.pipeline();
    checkModel(c.req.param("name"), model);
    return c.json(modelObject(model));
  });
  return routes;
}

/** OpenAI's fields, then ours. */
function modelObject(model: ModelInfo) {
  return { id: model.name, object: "model", created: 0, owned_by: "local", ...model };
}

function checkModel(name: string, { name: loaded }: ModelInfo): void {
  if (name === loaded) return;
  const message = `Cannot answer: expected the model ${JSON.stringify(loaded)}, found ${
    JSON.stringify(name)
  }`;
  throw new HttpError({ code: "model_unknown", message, field: "model" });
}
