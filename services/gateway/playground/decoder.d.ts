/** A place in pixels of the picture. */
export interface Point { x: number; y: number; negative?: boolean }
export interface Box { x_min: number; y_min: number; x_max: number; y_max: number }

/** What POST /embed returns with Accept: application/octet-stream: its bytes, and two of its headers as JSON. */
export interface Embedding {
  data: ArrayBuffer;
  shape: number[];
  geometry: { height: number; width: number; squash?: boolean };
}

/** Points, a box or both; beside them, `mask` has the square logits of an earlier answer. */
export interface Prompt { points?: Point[]; box?: Box | null; mask?: Float32Array | null }

export interface Mask {
  /** Start and end of each run of the mask, in turn: pixels from the top-left corner, column by column. */
  runs: Int32Array;
  width: number;
  height: number;
  /** The overlap with the object that the model predicts. */
  quality: number;
  /** side × side, over the model's square frame. */
  logits: Float32Array;
  side: number;
}

export class Decoder {
  /** Open the bytes of a decoder.onnx; `runtime` is the address of the folder with ONNX Runtime Web. */
  static open(files: { model: ArrayBuffer; runtime: string }): Promise<Decoder>;
  /** Decode this embedding from now on. */
  use(embedding: Embedding): Promise<void>;
  /** Masks of one prompt, the best first: three for one point alone, unless `most` is less. */
  decode(prompt: Prompt, options?: { most?: number }): Promise<Mask[]>;
  /** End the worker; what it was asked fails. */
  close(error?: Error): void;
}
