/** SHA-256: by it things are told apart, and damage is seen. */

/** The digest of a text, in UTF-8, or of bytes: 32 bytes, which `toHex()` spells. */
export async function sha256(of: string | ArrayBuffer | ArrayBufferView): Promise<Uint8Array> {
  const bytes = typeof of === "string" ? new TextEncoder().encode(of) : of;
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
}
