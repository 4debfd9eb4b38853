/** jSquash's decoders: compiled WebAssembly, and for two of them the Emscripten loader that goes with it. */

export const jpegModule: WebAssembly.Module;
export const pngModule: WebAssembly.Module;
export const webpModule: WebAssembly.Module;

/** What an Emscripten loader takes, as far as it is used here. */
export interface LoaderOptions {
  readonly noInitialRun: boolean;
  /** Each gets one line that C wrote to its standard output or error. */
  readonly print: (line: string) => void;
  readonly printErr: (line: string) => void;
  readonly instantiateWasm: (
    imports: WebAssembly.Imports,
    done: (instance: WebAssembly.Instance) => void,
  ) => WebAssembly.Exports;
}

export interface LoadedDecoder {
  /** Straight RGBA, or null. Throws whatever C++ throws, also things that are no Error. */
  decode(bytes: Uint8Array, turnUpright?: boolean): {
    readonly width: number;
    readonly height: number;
    readonly data: Uint8ClampedArray;
  } | null;
}

export const jpegFactory: (options: LoaderOptions) => Promise<LoadedDecoder>;
export const webpFactory: (options: LoaderOptions) => Promise<LoadedDecoder>;
