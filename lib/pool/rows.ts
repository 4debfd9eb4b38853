/** Rows of numbers in few bytes, for the way to other machines: half floats, or bytes with a scale for each row. */

/** Bytes of one row of `width` numbers: 2 each as f16; as int8 one each, after the row's scale, an f32. */
export function rowBytes(dtype: "f16" | "int8", width: number): number {
  return dtype === "f16" ? 2 * width : 4 + width;
}

/** Rows [N, W] as bytes, little-endian: N · {@link rowBytes}. */
export function encodeRows(dtype: "f16" | "int8", values: Float32Array, width: number): Uint8Array {
  if (dtype === "f16") return new Uint8Array(Float16Array.from(values).buffer);
  const { data, scales } = toInt8(values, width);
  const bytes = new Uint8Array(scales.length * rowBytes(dtype, width));
  const view = new DataView(bytes.buffer);
  for (const [row, scale] of scales.entries()) {
    const at = row * rowBytes(dtype, width);
    view.setFloat32(at, scale, true);
    bytes.set(new Uint8Array(data.buffer, row * width, width), at + 4);
  }
  return bytes;
}

/** What {@link encodeRows} wrote, as f32 [N, W]. */
export function decodeRows(dtype: "f16" | "int8", bytes: Uint8Array, width: number): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = rowBytes(dtype, width);
  if (bytes.length % size) {
    throw new RangeError(
      `Cannot decode rows of ${width}: expected a multiple of ${size} bytes, found ${bytes.length}`,
    );
  }
  const values = new Float32Array(bytes.length / size * width);
  for (let row = 0, i = 0; row * size < bytes.length; row++) {
    const scale = dtype === "int8" ? view.getFloat32(row * size, true) : 1;
    for (let col = 0; col < width; col++, i++) {
      values[i] = dtype === "f16"
        ? view.getFloat16(row * size + 2 * col, true)
        : view.getInt8(row * size + 4 + col) * scale;
    }
  }
  return values;
}

/** Bytes [N, W] and scales [N]: value = byte · scale of its row. The largest byte of a row is ±127, unless all are 0. */
export function toInt8(
  values: Float32Array,
  width: number,
): { data: Int8Array<ArrayBuffer>; scales: Float32Array<ArrayBuffer> } {
  const data = new Int8Array(values.length);
  const scales = new Float32Array(values.length / width);
  for (let row = 0; row < scales.length; row++) {
    const [start, end] = [row * width, (row + 1) * width];
    let most = 0;
    for (let i = start; i < end; i++) most = Math.max(most, Math.abs(values[i]));
    scales[row] = most / 127;
    for (let i = start; i < end; i++) data[i] = most ? Math.round(values[i] / scales[row]) : 0;
  }
  return { data, scales };
}
