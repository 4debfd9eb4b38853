/** The bundled model's files by name, as part of the Worker. */
declare const files: Readonly<Record<string, ArrayBuffer>>;
export default files;
