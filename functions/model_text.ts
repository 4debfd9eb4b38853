/** What `models info` prints. */

import type { Description } from "../models/inspect.ts";
import type { DoorFit, Manifest } from "../models/manifests.ts";
import { size } from "./meter.ts";

/** A manifest as lines for a person. */
export function manifestText({ id, source, licence, memory, streamedVisionBytes, doors }: Manifest): string {
  return [
    id,
    `from      ${source.repo} at ${source.revision}${
      source.others.length ? `, also ${source.others.join(", ")}` : ""
    }`,
    `files     ${source.files.join(", ")}`,
    `download  about ${size(source.weightsBytes)}, ${source.dtype}`,
    `checksums ${source.checksums}`,
    ...source.note ? [`note      ${source.note}`] : [],
    `licence   ${licence.name}, ${licence.url}`,
    `gate      ${licence.gate}`,
    ...Object.entries(memory).map(([format, { weightsBytes, peakBytes }]) =>
      `${format.padEnd(9)} ${size(weightsBytes)} of weights, ${size(peakBytes)} at most during an answer`
    ),
    `streamed  ${size(streamedVisionBytes)} for SigLIP and the projector in int8, layer by layer`,
    ...doorLines(doors),
    "",
  ].join("\n");
}

/** What a directory holds, as lines for a person. */
export function descriptionText(it: Description): string {
  const { vision, decoder, memory } = it;
  return [
    `model     ${it.family === "gemma" ? "PaliGemma" : "PaliGemma 2"}, ${
      (it.parameters / 1e6).toFixed(1)
    } M parameters`,
    `picture   ${it.imageSize} × ${it.imageSize} pixels, ${it.imageTokens} tokens`,
    `vision    width ${vision.width}, ${vision.layers} layers`,
    `decoder   width ${decoder.width}, ${decoder.layers} layers, vocabulary of ${decoder.vocabulary}`,
    `schemes   ${Object.entries(it.schemes).map(([part, scheme]) => `${part} ${scheme}`).join(", ")}`,
    ...it.files.map((file, i) => `${i ? "         " : "files    "} ${file.name}  ${file.sizeBytes} bytes`),
    `memory    ${size(memory.weightsBytes)} of weights, ${size(memory.peakBytes)} at most during an answer`,
    `streamed  ${size(it.streamedVisionBytes)} for SigLIP and the projector, layer by layer`,
    ...doorLines(it.doors),
    "",
  ].join("\n");
}

function doorLines(doors: readonly DoorFit[]): string[] {
  return doors.map(({ door, part, formats }, i) =>
    `${i ? "         " : "fits     "} ${door}, ${part}: ${formats.join(", ") || "no"}`
  );
}
