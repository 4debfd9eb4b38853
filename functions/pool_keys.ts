/**
 * Makes the keys of a pool: `deno task pool:keys DIR`. Who asks signs with `server.jwk`, workers trust `trusted.jwks`; by
 * the `.nkey` seeds either role is let into NATS, whose configuration (functions/nats.conf) takes the public ones from its
 * environment, `nats.env`. With `--features` workers also take image features and tokens from whoever signs.
 */

import { nkeys } from "@nats-io/nats-core";
import { join } from "@std/path";
import { exportJWK, generateKeyPair } from "jose";

/** Writes them; private ones for this user's eyes only. @param features whether more than pixels may be signed. */
export async function writePoolKeys(directory: string, features = false): Promise<void> {
  await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
  const write = (name: string, text: string) =>
    Deno.writeTextFile(join(directory, name), text + "\n", { mode: 0o600, createNew: true });
  const { privateKey, publicKey } = await generateKeyPair("EdDSA", { extractable: true });
  const kid = crypto.randomUUID();
  await write("server.jwk", JSON.stringify({ ...await exportJWK(privateKey), kid }));
  await write(
    "trusted.jwks",
    JSON.stringify({ keys: [{ ...await exportJWK(publicKey), kid, ...features && { features } }] }),
  );
  const variables: string[] = [];
  for (const role of ["server", "worker"]) {
    const pair = nkeys.createUser();
    await write(`${role}.nkey`, new TextDecoder().decode(pair.getSeed()));
    variables.push(`${role.toUpperCase()}_NKEY=${pair.getPublicKey()}`);
  }
  await write("nats.env", variables.join("\n"));
}

if (import.meta.main) {
  const features = Deno.args.includes("--features");
  const [directory] = Deno.args.filter((it) => it !== "--features");
  const say = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(text + "\n"));
  if (!directory) {
    say("Usage: deno task pool:keys DIR [--features]");
    Deno.exit(2);
  }
  try {
    await writePoolKeys(directory, features);
    say(`Wrote server.jwk, server.nkey, trusted.jwks, worker.nkey and nats.env to ${directory}.`);
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    say(`Cannot write keys: ${directory} has some already.`);
    Deno.exit(1);
  }
}
