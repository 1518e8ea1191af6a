// SAM's mask decoder in the browser. An image is encoded once by a service; points, boxes and masks are
// answered here, in a worker, by ONNX Runtime Web. This file needs no other one of the playground.
//
//   const decoder = await Decoder.open({model: bytesOfDecoderOnnx, runtime: "/playground/onnxruntime/"});
//   await decoder.use(embedding);                       // {data: bytes of float16, shape, geometry}
//   const [best] = await decoder.decode({points: [{x: 120, y: 80}]});
//   best.runs                                           // start, end, start, end … down the columns
//
// All places are pixels of the picture, (0, 0) its top-left corner.

const FRAME = 1024;  // the side of the graph's frame of points, whatever the model's own
const OBJECT = 1, NOT_OBJECT = 0, PADDING = -1, BOX_MIN = 2, BOX_MAX = 3;

// ---------------------------------------------------------------- for a page

export class Decoder {
  #worker; #waiting = new Map(); #number = 0; #ended = null;

  /** Open the bytes of a decoder.onnx; `runtime` is the address of the folder with ONNX Runtime Web's files. */
  static async open({model, runtime}) {
    const decoder = new Decoder();
    try {
      await decoder.#ask("open", {model, runtime: new URL(runtime, document.baseURI).href});
    } catch (error) { decoder.close(error); throw error; }
    return decoder;
  }

  constructor() {
    this.#worker = new Worker(import.meta.url, {type: "module"});
    this.#worker.onmessage = ({data: {number, answer, error}}) => {
      const {done, failed} = this.#waiting.get(number);
      this.#waiting.delete(number);
      if (error === undefined) done(answer); else failed(new Error(error));
    };
    this.#worker.onerror = event => this.close(new Error(event.message || "the decoder's worker could not be started"));
  }

  /** Decode this embedding from now on: `data` are its bytes as the service sends them, and `geometry` is the header's. */
  use({data, shape, geometry}) { return this.#ask("use", {data, shape, geometry}); }

  /** Masks of one prompt, the best first: several for one point, unless `most` is 1. Throws for a prompt that is empty. */
  decode({points = [], box = null, mask = null}, {most = 3} = {}) { return this.#ask("decode", {points, box, mask, most}); }

  /** End the worker; what it was asked fails. */
  close(error = new Error("the decoder was closed")) {
    this.#ended = error;
    this.#worker.terminate();
    for (const {failed} of this.#waiting.values()) failed(error);
    this.#waiting.clear();
  }

  #ask(what, given) {
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((done, failed) => {
      this.#waiting.set(++this.#number, {done, failed});
      this.#worker.postMessage({number: this.#number, what, given});
    });
  }
}

// ---------------------------------------------------------------- in the worker

let ort = null, session = null, frame = null, image = null;  // frame: the side of the model's, in pixels

const tasks = {
  async open({model, runtime}) {
    ort = await import(`${runtime}ort.wasm.bundle.min.mjs`);
    const packed = await fetch(`${runtime}ort-wasm-simd-threaded.wasm.gz`);
    if (!packed.ok) throw new Error(`ONNX Runtime Web is not at ${runtime}`);
    ort.env.wasm.wasmBinary = await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    ort.env.wasm.numThreads = 1;  // several need an isolated page, and were slower on two cores
    session = await ort.InferenceSession.create(new Uint8Array(model), {executionProviders: ["wasm"]});
  },

  async use({data, shape, geometry: {width, height, squash}}) {
    const values = floats(new Uint16Array(data));
    if (squash || shape.length !== 3 || shape[0] * shape[1] * shape[2] !== values.length) {
      throw new Error(`an embedding of shape ${shape} in ${values.length} numbers${squash ? ", squashed," : ""} is none of a SAM`);
    }
    const embedding = new ort.Tensor("float32", values, [1, ...shape]);
    frame ??= (await run(embedding, [[0, 0]], [PADDING])).frame_size.data[0];
    image = {width, height, embedding};
  },

  async decode({points, box, mask, most}) {
    if (!image) throw new Error("there is no embedding: use one first");
    const corners = box ? [[box.x_min, box.y_min], [box.x_max, box.y_max]] : [], size = fitted(image, frame);
    const places = [...points.map(({x, y}) => [x, y]), ...corners].map(([x, y]) => [x * size.width / image.width, y * size.height / image.height]);
    const labels = [...points.map(({negative}) => negative ? NOT_OBJECT : OBJECT), ...(box ? [BOX_MIN, BOX_MAX] : points.length ? [PADDING] : [])];
    if (!labels.length) throw new Error("there is nothing to decode: give points or a box");
    if (labels.length > places.length) places.push([0, 0]);
    const {logits, iou} = await run(image.embedding, places, labels, mask);
    return masksOf(logits, iou.data, points.length === 1 && !box && !mask, most);
  },
};

/** Run the graph, with places in the model's own frame. Its enlarged mask is not wanted: that of a square picture of one
    pixel costs nothing, and its frame is the whole one. */
function run(embedding, places, labels, mask = null) {
  const side = mask ? Math.sqrt(mask.length) : 1, tensor = (values, ...shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
  return session.run({
    image_embeddings: embedding, point_coords: tensor(places.flat().map(place => place * FRAME / (frame ?? FRAME)), 1, places.length, 2),
    point_labels: tensor(labels, 1, labels.length), mask_input: tensor(mask ?? [0], 1, 1, side, side),
    has_mask_input: tensor([mask ? 1 : 0], 1), orig_im_size: tensor([1, 1], 2),
  });
}

/** The masks that answer, the best first: of one point alone the three that the decoder takes it for, else its first. */
function masksOf({data, dims}, iou, several, most) {
  const side = dims[2], order = several ? [1, 2, 3].sort((one, other) => iou[other] - iou[one]).slice(0, most) : [0];
  return order.map(at => {
    const logits = data.slice(at * side * side, (at + 1) * side * side);
    return {runs: runsOf(logits, side, image), width: image.width, height: image.height, quality: iou[at], logits, side};
  });
}

/** The size of a picture in a square frame. */
function fitted({width, height}, frame) {
  const scaled = side => Math.max(1, Math.floor(side * (frame / Math.max(width, height)) + 0.5));
  return {width: scaled(width), height: scaled(height)};
}

/** For each of `many` pixels: the cell before it among `few`, the one after it, and how far it is between them. */
function between(few, many) {
  const before = new Int32Array(many), after = new Int32Array(many), share = new Float64Array(many);
  for (let at = 0; at < many; at++) {
    const place = Math.min(Math.max((at + 0.5) * few / many - 0.5, 0), few - 1);
    before[at] = Math.min(Math.floor(place), Math.max(0, few - 2));
    after[at] = Math.min(before[at] + 1, few - 1);
    share[at] = place - before[at];
  }
  return {before, after, share};
}

/** Logits of the picture in the model's frame, column by column. */
function enlarged(logits, side, size) {
  const place = between(side, frame), half = new Float32Array(side * size.width), full = new Float32Array(size.width * size.height);
  for (let x = 0; x < size.width; x++) {
    const left = place.before[x], right = place.after[x], share = place.share[x];
    for (let row = 0; row < side; row++) {
      const one = logits[row * side + left];
      half[x * side + row] = one + share * (logits[row * side + right] - one);
    }
    for (let y = 0; y < size.height; y++) {
      const one = half[x * side + place.before[y]];
      full[x * size.height + y] = one + place.share[y] * (half[x * side + place.after[y]] - one);
    }
  }
  return full;
}

/** Where the mask of logits begins and ends down each column of the picture, as the service finds it: logits are
    linear between two rows of the frame, and so their sign changes once there at most. */
function runsOf(logits, side, {width, height}) {
  const size = fitted({width, height}, frame), columns = enlarged(logits, side, size), h = size.height;
  const {before, after, share} = between(size.width, width), runs = [];
  for (let x = 0; x < width; x++) {
    const one = before[x] * h, other = after[x] * h;
    let former = -1, start = -1;
    for (let y = 0; y <= h; y++) {
      const here = y < h ? Math.fround(columns[one + y] + share[x] * (columns[other + y] - columns[one + y])) : -1;
      if (here > 0 !== former > 0) {
        const row = y - 1 + former / (former - here), pixel = (row + 0.5) * (height / h) - 0.5;
        if (here > 0) start = y ? Math.max(0, Math.floor(pixel) + 1) : 0;
        else {
          const end = y < h ? Math.min(height, Math.ceil(pixel)) : height, first = x * height + start;
          if (runs.length && runs.at(-1) === first) runs[runs.length - 1] = x * height + end;  // at the top of the next column
          else if (end > start) runs.push(first, x * height + end);
        }
      }
      former = here;
    }
  }
  return Int32Array.from(runs);
}

/** Numbers of 16 bits as floats. */
function floats(halves) {
  const values = new Float32Array(halves.length);
  for (let at = 0; at < halves.length; at++) {
    const half = halves[at], exponent = half >> 10 & 31, fraction = half & 1023;
    const size = exponent === 31 ? fraction ? NaN : Infinity : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    values[at] = half & 0x8000 ? -size : size;
  }
  return values;
}

async function work({number, what, given}) {
  try { self.postMessage({number, answer: await tasks[what](given)}); } catch (error) { self.postMessage({number, error: error.message}); }
}

if (globalThis.WorkerGlobalScope && self instanceof WorkerGlobalScope) {
  let last = Promise.resolve();  // one after another: the next may bring another picture
  self.onmessage = ({data}) => { last = last.then(() => work(data)); };
}
